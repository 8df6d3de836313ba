"""Which machines of a site need a join token, for automation that sets servers up.

What each server says of its own (its certificate, or that it has none) is compared with what the
control plane knows. Rules kept here:
* a machine that can call, or gets another certificate by its own key, needs no token;
* one that was evicted gets none unless the operator names it: to evict was a decision; to name one
  that is not evicted is refused, so that a name left standing lets nobody in after the next one;
* nothing is written, so that it can be asked beside a control plane that runs; also a state of the
  release before is read, because it is asked before the first start of the new one.

Called by `python -m appliance.control --config control.toml who-joins`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Table, select, text

from appliance.control.config import ControlConfig
from appliance.control.services.fleet.certificates import EVICTED, KINDS, RECOVERED_FOR, counting
from appliance.control.store.database import Database, Reading
from appliance.core.data_directory import DataDirectory
from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.core.identity import Principal
from appliance.crypto.reading import not_after, serial_of

JOINS, FINE, REFUSED = "joins", "fine", "evicted"


@dataclass(frozen=True)
class KnownMachine:
    """What the control plane knows of a machine: its state, and certificates that count.

    Of a server that was restored from a backup the certificate counts no more when the next one was
    used: it would be refused, and evicted if it recovered.
    """

    state: str
    serials: frozenset[str]


def decide(
    certificate: bytes | None, known: KnownMachine | None, now: datetime, *, readmit: bool
) -> tuple[str, str]:
    """Whether a machine joins, is fine or was evicted; and why, as the end of a sentence.

    Args:
        certificate: PEM, as it lies on its server; None when it has none.
        known: what the control plane knows; None when it knows nothing.
        now: aware time.
        readmit: whether it may come back after an eviction.
    """
    if known is not None and known.state == EVICTED:
        why = "was evicted, and gets no join token until you name it in control_readmit"
        return (JOINS, "was evicted, and comes back") if readmit else (REFUSED, why)
    try:
        end, serial = not_after(certificate or b""), serial_of(certificate or b"")
    except InvalidInput:
        return JOINS, "has no identity"
    if known is None or serial not in known.serials:
        return JOINS, "has a certificate that the control plane does not know, or knows no more"
    if now - end > RECOVERED_FOR:
        return JOINS, f"has a certificate that ended more than {RECOVERED_FOR.days} days ago"
    return FINE, "calls, or gets its next certificate by itself"


def who_joins(
    settings: ControlConfig,
    held: Mapping[Principal, bytes | None],
    now: datetime,
    readmit: Collection[Principal],
) -> dict[Principal, tuple[str, str]]:
    """What `decide` says of each machine in `held`.

    Raises FailedPrecondition when the state cannot be read, or one to readmit is not evicted.
    """
    data = DataDirectory(settings.data)
    data.check_complete(("state.db",))
    known: dict[Principal, KnownMachine] = {}
    with closing(Database(data.state)) as database, database.read() as state:
        for kind, machines in KINDS.items():
            for row in state.all(select(*_columns(state, machines.table))):
                facts = row._mapping  # noqa: SLF001  # public in SQLAlchemy
                serials = counting(
                    row.certificate_serial,
                    facts.get("previous_serial", ""),
                    used=facts.get("certificate_used", False),
                )
                known[Principal(kind, row.id)] = KnownMachine(row.state, serials)
    standing = sorted(
        machine.name
        for machine in readmit
        if machine not in known or known[machine].state != EVICTED
    )
    if standing:
        raise FailedPrecondition(
            f"{', '.join(standing)} is not evicted: remove it from control_readmit (--readmit), "
            "which is for one return, so that the next eviction holds"
        )
    return {
        machine: decide(certificate, known.get(machine), now, readmit=machine in readmit)
        for machine, certificate in held.items()
    }


def _columns(state: Reading, table: Table) -> list[ColumnElement[Any]]:
    """Id, state and serials; a gateway of the release before has one serial only."""
    there = {
        row.name
        for row in state.all(
            text("SELECT name FROM pragma_table_info(:t)").bindparams(t=table.name)
        )
    }
    wanted = ("id", "state", "certificate_serial", "previous_serial", "certificate_used")
    return [table.c[name] for name in wanted if name in there]
