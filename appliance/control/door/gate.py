"""THE DOOR of the control plane: every call of both listeners passes here, in the same order.

    place      a share of the few places for calls whose caller is not known yet, by source
    limit      an address that does not say who it is may call so many times a second
    identify   who calls, by this call's own token or certificate; no message was read yet
    seat       what one known caller may have in work and how often it may call, by class
    message    the first one, within a time, read and parsed
    decide     the rule beside the RPC in its proto, the resource in the request, the policy
    fresh MFA  where the rule asks for it
    intent     an audit record, durable before anything happens; without it nothing happens
    call       the service, which finds the caller with `current_caller`
    result     an audit record of what came out; a refused call gets one too, with its caller's name
    status     errors of ours become a status, anything else becomes INTERNAL with the request's id

Rules kept here:
* a method without a rule is refused, and a server with one does not start (`appliance.wire`);
* a stream is identified and decided again every second and ends when that fails;
* nothing a caller sent reaches the audit record but ids, the name of the resource, the request id
  and the fields that the rule names; passwords, codes and tokens are not among them;
* who is refused and has a name gets a record of its own, up to a rate; what strangers cause, and
  what is over a known caller's budget, is counted and becomes one record a minute;
* a read that needs no identity (a challenge) leaves no record: it says nothing and changes nothing.
  It pays as a stranger's call, and the metrics count it.

The attacks: a call that reaches a service without a decision or outlives it; a change without a
record of who made it; an audit log filled with refusals. The frame (places, request id, messages,
errors) is `appliance.wire.door`; made by the composition root, one for each listener.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

from appliance.control.door.access import Access
from appliance.control.door.identify import Identify
from appliance.control.door.journal import Journal, RecordedIntent
from appliance.control.services.common.caller import (
    Caller,
    current_caller,
    known_caller,
    set_current_caller,
)
from appliance.core.errors import (
    ApplianceError,
    Exhausted,
    PasswordChangeRequired,
    Unauthenticated,
)
from appliance.core.identity import Principal
from appliance.wire.admission import Rates, Refusals, SourceLimit
from appliance.wire.budgets import Admission
from appliance.wire.door import UNKNOWN, Call, Door
from appliance.wire.metrics import CallMetrics
from appliance.wire.recorded import facts
from appliance.wire.rules import AccessRule

RECHECK_SECONDS = 1.0
T = TypeVar("T")


@dataclass(frozen=True)
class Entered:
    """A call that may run: who makes it, and its line in the audit log, if it has one."""

    caller: Caller
    line: RecordedIntent | None


@dataclass(frozen=True)
class GateLimits:
    """What both listeners count together, because both write into one audit log.

    Attributes:
        strangers: calls that need no identity, by source.
        refused: calls whose credential was refused, by source; apart, so that tokens that ended
            stop nobody at the same address from logging in again.
        denials: refused calls that get a record of their own, by the name of their caller.
        refusals: all others, until they become records.
    """

    strangers: SourceLimit
    refused: SourceLimit
    denials: Rates
    refusals: Refusals


class Gate(Door[Entered]):
    """The door of one listener.

    Args:
        rules: of every RPC served behind it.
        identify: who calls; by token on one listener, by certificate on the other.
        access: decides.
        journal: audit records.
        limits: shared with the other listener: rates and counted refusals.
        pool: threads for everything here that may read the disk.
        admission: places and seats of this listener.
        metrics: counts calls.
    """

    def __init__(  # noqa: PLR0913  # the parts of the door, each given by the composition root
        self,
        rules: Mapping[str, AccessRule],
        *,
        identify: Identify,
        access: Access,
        journal: Journal,
        limits: GateLimits,
        pool: Executor,
        admission: Admission | None = None,
        metrics: CallMetrics | None = None,
        recheck_seconds: float = RECHECK_SECONDS,
    ) -> None:
        super().__init__(
            rules, admission=admission, metrics=metrics, recheck_seconds=recheck_seconds
        )
        self._credentials = identify
        self._access = access
        self._journal = journal
        self._limits = limits
        self._pool = pool

    async def identify(self, call: Call) -> Principal:
        """Who calls; a credential that is refused counts against its address."""
        if call.rule.anonymous:
            self._limits.strangers.take(call.peer)
            caller = self._credentials.caller(call)
        else:
            caller = await self._identified(call)
        set_current_caller(caller)
        return caller.principal

    async def _identified(self, call: Call) -> Caller:
        try:
            self._credentials.check_presented(call)
            return await self._run(self._credentials.caller, call)
        except Unauthenticated as refused:
            if not isinstance(refused, PasswordChangeRequired):  # That credential was right.
                self._limits.refused.take(call.peer)
            set_current_caller(await self._run(self._credentials.stranger, call, refused))
            raise

    async def enter(self, call: Call) -> Entered:
        """Decide, up to the intent. Raises what the caller shall see."""
        caller = current_caller()
        if call.rule.anonymous:
            await self._run(self._credentials.check_carried, call)
        version = await self._run(self._access.decide, caller, call.rule, call.resource)
        self._access.check_fresh_mfa(caller, call.rule)
        if call.rule.anonymous and call.rule.reads:
            return Entered(caller, None)
        asked = facts(call.request, call.rule.recorded.asked)
        line = await self._journal.intent(caller, call.rule.method, call.resource, version, asked)
        return Entered(caller, line)

    async def recheck(self, call: Call, entered: Entered) -> None:
        """Identify and decide again; raises when a running stream must end."""
        caller = await self._run(self._credentials.caller, call)
        if caller.principal != entered.caller.principal:
            raise Unauthenticated("the caller changed during the call")
        await self._run(self._access.decide, caller, call.rule, call.resource)

    async def leave(
        self, call: Call, entered: Entered | None, error: ApplianceError | None
    ) -> None:
        """Record the outcome, of a refused call with as much of its caller as is known."""
        outcome = error.reason if error else "OK"
        if entered is not None and entered.line is not None:
            made = facts(call.answer, call.rule.recorded.made)
            await self._journal.result(entered.line, entered.caller, outcome, made)
            return
        if entered is not None and error is None:
            return
        caller = known_caller()
        name = (caller.principal.name or caller.notes.get("principal", "")) if caller else ""
        if (
            caller is None
            or not name
            or isinstance(error, Exhausted)
            or self._limits.denials.wait(name)
        ):
            # Nobody with a name, or over a limit, or the log itself is full: it may not fill the
            # log, but it is counted.
            method = call.rule.method if call.rule.method in self.rules else UNKNOWN
            self._limits.refusals.count(call.source, outcome, method, principal=name)
            return
        asked = facts(call.request, call.rule.recorded.asked)
        await self._journal.denied(caller, call.rule.method, call.resource, outcome, asked)

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
