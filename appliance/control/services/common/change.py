"""One way to change the state: once per request id, or only checked, or not at all.

Rules kept here:
* the effect and the stored answer are one transaction: a repeat with the same request id gets the
  first answer, the same id with another request is an error (`appliance.control.store.requests`);
* `validate_only` runs everything and then rolls it back, so what it accepts is what a real call
  accepts;
* whoever was locked or deleted while a call of theirs was on its way changes nothing any more: once
  the lock has returned, it holds;
* wake-ups and other consequences run after the commit (`transaction.after_commit`).

Used by every service method that changes something on request.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

from google.protobuf.message import Message

from appliance.control.auth import grants, tokens
from appliance.control.services.common.caller import Caller
from appliance.control.store import requests
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core.identity import PrincipalKind

M = TypeVar("M", bound=Message)
_LOCKED = frozenset({PrincipalKind.USER, PrincipalKind.SERVICE_ACCOUNT})


class _OnlyValidated(Exception):
    """Not an error: it carries an answer out of a rollback."""

    def __init__(self, answer: Message) -> None:
        super().__init__()
        self.answer = answer


class Changes:
    """Runs changes on request.

    Args:
        database: the state.
        clock: the time, aware.
    """

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    def make(
        self,
        caller: Caller,
        request: Message,
        answer: type[M],
        work: Callable[[Transaction], M],
        *,
        payload: Message | None = None,
    ) -> M:
        """Do `work` in one write transaction; its answer, or the answer of the first time.

        Args:
            caller: who asks; a request id belongs to one caller.
            request: has `request_id` and perhaps `validate_only`.
            answer: type of the answer.
            work: makes the change; raises to change nothing.
            payload: what is compared with the first call instead of `request`, when that holds a
                secret.
        """
        principal, request_id = caller.principal.subject, getattr(request, "request_id", "")
        method = request.DESCRIPTOR.full_name
        digested = (payload or request).SerializeToString(deterministic=True)
        now = self._clock()
        try:
            with self._database.write() as transaction:
                check_still_there(transaction, caller)
                stored = requests.answered(
                    transaction,
                    principal=principal,
                    method=method,
                    request_id=request_id,
                    payload=digested,
                    now=now,
                )
                if stored is not None:
                    return answer.FromString(stored)
                made = work(transaction)
                _stop_if_only_validated(request, made)
                requests.remember(
                    transaction,
                    principal=principal,
                    method=method,
                    request_id=request_id,
                    payload=digested,
                    response=made.SerializeToString(),
                    now=now,
                )
                return made
        except _OnlyValidated as validated:
            if not isinstance(validated.answer, answer):
                raise TypeError(f"the change made {type(validated.answer).__name__}") from None
            return validated.answer


def check_still_there(state: Reading, caller: Caller) -> None:
    """Raise Unauthenticated when a person or an application was locked or deleted meanwhile.

    The gate let the call in before its transaction began.
    """
    if caller.principal.kind in _LOCKED and grants.is_locked(state, caller.principal.subject):
        raise tokens.refused()


def _stop_if_only_validated(request: Message, made: Message) -> None:
    if getattr(request, "validate_only", False):
        raise _OnlyValidated(made)
