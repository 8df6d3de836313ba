"""When nobody can log in any more, or a start is refused: what only the machine's owner may do.

The way for people is `appliance user unlock` and `reset-factor`: it needs somebody who can log in.
These are for whoever may read the keys on the control plane's own server, when nobody can.

Rules kept here:
* the control plane must not run: its lock is taken, so there is one writer of state and audit log;
* intent and result are in the audit log, under the methods `unlock`, `reset-factor`,
  `accept-clock` and `accept-state` and no principal: the operating system, not the appliance, says
  who may run it;
* nothing is let in: password and second factor are asked for at the next log-in as ever;
* a clock is accepted only when the last record is ahead of it, and that is recorded; what was made
  under the wrong clock stays unbelieved (`auth.moments`);
* a state is accepted only when it is older than the log, or has rows that the control plane did
  not write; sessions and devices of before count no more, and the first record of what is missing
  in an older one is named;
* of rows that somebody else wrote, those that let somebody in go, people and applications are
  locked, machines are evicted, and work is ended; the rest is taken as it is, and named.

Called by `python -m appliance.control --config control.toml` and one of these methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from appliance.control.audit import witness
from appliance.control.audit.record import AuditEntry
from appliance.control.auth import attempts
from appliance.control.auth.moments import believed
from appliance.control.auth.totp import Totp
from appliance.control.bootstrap import forged_rows
from appliance.control.bootstrap.opening import Opened, last_moment, offline, open_data
from appliance.control.config import ControlConfig
from appliance.control.services.access.users import end_log_ins_in
from appliance.control.services.common.resources import missing
from appliance.control.store import tables
from appliance.control.store.database import Transaction
from appliance.core import names
from appliance.core.errors import FailedPrecondition

UNLOCK, RESET_FACTOR = "unlock", "reset-factor"
ACCEPT_CLOCK, ACCEPT_STATE = "accept-clock", "accept-state"
Clock = Callable[[], datetime]


def unlock(settings: ControlConfig, user: str, clock: Clock) -> None:
    """Let a person in again and forget the failed tries, on whatever device.

    Raises:
        InvalidInput, NotFound: `user` names nobody.
        FailedPrecondition: the control plane runs, or its data directory is not in order.
        AuditUnavailable: it cannot be recorded; then nothing has changed.
    """

    def work(transaction: Transaction, _: Opened) -> None:
        open_again = tables.user.update().where(tables.user.c.id == user)
        transaction.run(open_again.values(locked=False))
        attempts.clear_account(transaction, user)

    _change(settings, UNLOCK, user, clock, work)


def reset_factor(settings: ControlConfig, user: str, clock: Clock) -> None:
    """Take a person's authenticator and recovery codes away; the next log-in enrols another one.

    Sessions end and devices are forgotten. Raises as `unlock` does.
    """

    def work(transaction: Transaction, opened: Opened) -> None:
        ring = opened.keyring
        Totp(ring.field_key, ring.token_hmac).reset(transaction, user)
        end_log_ins_in(transaction, user)

    _change(settings, RESET_FACTOR, user, clock, work)


def accept_clock(settings: ControlConfig, clock: Clock) -> datetime:
    """Go on from the present time although the last record is ahead of it; that record's time.

    Raises:
        FailedPrecondition: the control plane runs, its data directory is not in order, or the
            clock is not behind.
        AuditUnavailable: it cannot be recorded; then nothing has changed.
    """
    with closing(open_data(settings, clock, check_clock=False)) as opened:
        now, ahead = clock(), last_moment(opened.database, opened.log)
        if believed(ahead, now):
            raise FailedPrecondition(
                f"the clock is not behind the last record ({ahead:%Y-%m-%d %H:%M:%S}Z): there is "
                "nothing to accept, start the control plane"
            )
        details = offline() | {"last_record": ahead.isoformat(), "clock": now.isoformat()}
        opened.log.append(AuditEntry("intent", method=ACCEPT_CLOCK, details=details)).result()
        with opened.database.write() as transaction:
            made = tables.meta.c.create_time
            transaction.run(tables.meta.update().where(made > now).values(create_time=now))
        opened.log.append(
            AuditEntry("result", method=ACCEPT_CLOCK, outcome="OK", details=offline())
        ).result()
        return ahead


@dataclass(frozen=True)
class AcceptedState:
    """A state that was accepted: how many changes it had, how many the log has seen.

    `first_record` is the first one of the log that tells of a change which the state does not have,
    the log's size when it has them all. `rows` are those that the control plane did not write, and
    `closed` what was done about some of them.
    """

    state: int
    log: int
    first_record: int
    rows: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()


def accept_state(settings: ControlConfig, clock: Clock) -> AcceptedState:
    """Go on from a state that is older than the audit log, or was written; every session ends.

    Raises:
        FailedPrecondition: the control plane runs, its data directory is not in order, or the
            state is neither older nor written by somebody else.
        AuditUnavailable: it cannot be recorded; then nothing has changed.
    """
    with closing(open_data(settings, clock, check_state=False)) as opened:
        state, seen = opened.database.generation, opened.log.generation
        if state >= seen and not opened.found:
            raise FailedPrecondition(
                "the state is not older than the audit log, and the control plane wrote all of it: "
                "there is nothing to accept, start the control plane"
            )
        accepted = AcceptedState(
            state,
            seen,
            witness.first_after(opened.log, state),
            tuple(str(finding) for finding in opened.found),
            tuple(forged_rows.closed(opened.found)),
        )
        details = offline() | dataclasses.asdict(accepted)
        opened.log.append(AuditEntry("intent", method=ACCEPT_STATE, details=details)).result()
        with opened.database.write() as transaction:
            forged_rows.close(transaction, opened.found, clock())
            for row in transaction.all(select(tables.user.c.id)):
                end_log_ins_in(transaction, row.id)
            transaction.accept(opened.found, max(state, seen))
        opened.log.append(
            AuditEntry("result", method=ACCEPT_STATE, outcome="OK", details=offline())
        ).result()
        return accepted


def _change(
    settings: ControlConfig,
    method: str,
    user: str,
    clock: Clock,
    work: Callable[[Transaction, Opened], None],
) -> None:
    """Do something for a user who exists, between intent and result."""
    resource = names.user(names.check_id(user, "user"))
    with closing(open_data(settings, clock)) as opened:
        with opened.database.read() as state:
            if state.first(tables.user.select().where(tables.user.c.id == user)) is None:
                raise missing(resource)
        opened.log.append(
            AuditEntry("intent", method=method, resource=resource, details=offline())
        ).result()
        with opened.database.write() as transaction:
            work(transaction, opened)
        opened.log.append(
            AuditEntry("result", method=method, resource=resource, outcome="OK", details=offline())
        ).result()
