"""Everything that ends: certificates and applications' tokens, and what of it somebody must see to.

Rules kept here:
* what renews by itself is due only when it should have renewed long ago: its certificate holds ten
  days and is replaced when it is a day old (by agents of 0.1.0: at half), so `LATE` is four days;
* what does not is due 30 days before its end; a token that was made for a short time, in the last
  third of it;
* evicted machines, ended tokens and those that were replaced are over, and nobody's concern; `MOST`
  tokens are looked at.

Called by the system service, and by the metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Table, select

from appliance.control.services.fleet.certificates import EVICTED
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading
from appliance.core import names
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import Authority
from appliance.crypto.reading import not_after

SOON = timedelta(days=30)
LATE = timedelta(days=4)
MOST = 1000


@dataclass(frozen=True)
class Expiration:
    """Something that ends.

    Attributes:
        what: for people, and the label of a metric.
        time: when.
        notice: so long before its end it is due.
        advice: what to do then.
    """

    what: str
    time: datetime
    notice: timedelta
    advice: str


class Expirations:
    """Reads what ends.

    Args:
        authority: of the appliance.
        own_end: when the control plane's own certificate ends.
        clock: the time, aware.
    """

    def __init__(
        self,
        database: Database,
        authority: Authority,
        own_end: Callable[[], datetime],
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._authority_end = not_after(authority.certificate_pem)
        self._own_end = own_end
        self._clock = clock

    def all(self) -> list[Expiration]:
        """Everything, soonest first: of tokens those that end within 30 days."""
        found = [
            Expiration(
                "CA certificate",
                self._authority_end,
                SOON,
                "the appliance ends with it: make another one, and move to it",
            ),
            Expiration(
                "controls/control certificate",
                self._own_end(),
                LATE,
                "it renews itself at the next connection: read the control plane's log",
            ),
        ]
        with self._database.read() as state:
            found += _machines(state, PrincipalKind.NODE, tables.node)
            found += _machines(state, PrincipalKind.GATEWAY, tables.gateway)
            found += _tokens(state, self._clock())
        return sorted(found, key=lambda each: each.time)

    def due(self) -> list[Expiration]:
        """What somebody must see to, soonest first."""
        now = self._clock()
        return [each for each in self.all() if each.time - now < each.notice]


def _machines(state: Reading, kind: PrincipalKind, table: Table) -> Iterator[Expiration]:
    """Certificates of one kind of machine; made before this release, they have no time."""
    word = kind.path
    advice = (
        f"the {word} should have renewed it: see whether it runs, and read its log; after its end "
        f"it comes back by itself for 90 days, then with `appliance {word} create-join-token`"
    )
    for row in state.all(table.select().where(table.c.state != EVICTED).order_by(table.c.id)):
        name = Principal(kind, row.id).name
        if row.certificate_expire_time is not None:
            yield Expiration(f"{name} certificate", row.certificate_expire_time, LATE, advice)
        if kind is PrincipalKind.GATEWAY and row.front_expire_time is not None:
            yield Expiration(f"{name} front certificate", row.front_expire_time, LATE, advice)


def _tokens(state: Reading, now: datetime) -> Iterator[Expiration]:
    token = tables.token.c
    replaced = select(token.replaces).where(token.replaces != "")
    wanted = (
        select(tables.token)
        .where(token.expire_time > now, token.expire_time < now + SOON, token.id.not_in(replaced))
        .order_by(token.expire_time)
        .limit(MOST)
    )
    for row in state.all(wanted):
        account = names.service_account(row.service_account)
        yield Expiration(
            f"{account} token {row.id}",
            row.expire_time,
            min(SOON, (row.expire_time - row.create_time) / 3),
            "put another one in its place (`appliance service-account rotate-token "
            f"{account} {row.id}`), and give it to the application",
        )
