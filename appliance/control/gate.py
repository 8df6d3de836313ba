"""THE DOOR of the control plane: every call of both listeners passes here, in the same order.

    limit      an address that does not say who it is may call so many times a second
    identify   who calls, by this call's own token or certificate
    decide     the rule beside the RPC in its proto, the resource in the request, the policy
    fresh MFA  where the rule asks for it
    intent     an audit record, durable before anything happens; without it nothing happens
    call       the service, which finds the caller with `current_caller`
    result     an audit record of what came out; a refused call gets one too, with its caller's name
    status     errors of ours become a status, anything else becomes INTERNAL with the request's id

Rules kept here:
* a method without a rule is refused, and a server with one does not start (`appliance.wire`);
* a stream is identified and decided again every second and ends when that fails;
* nothing a caller sent reaches the audit record but ids, the name of the resource and the request
  id; passwords, codes and tokens are not among them.

The attacks: a call that reaches a service without a decision or outlives it; a change without a
record of who made it. The frame (request id, first message of a stream, errors) is
`appliance.wire.door`; made by the composition root, one for each listener.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

from appliance.control.access import Access
from appliance.control.identify import Identify
from appliance.control.journal import Journal, Line
from appliance.control.services.caller import Caller, current_caller, set_current_caller
from appliance.core.errors import ApplianceError, Exhausted, Internal, Unauthenticated
from appliance.wire.admission import SourceLimit
from appliance.wire.door import Call, Door
from appliance.wire.metrics import CallMetrics
from appliance.wire.rules import Rule

logger = logging.getLogger(__name__)

RECHECK_SECONDS = 1.0
T = TypeVar("T")


@dataclass(frozen=True)
class Entered:
    """A call that may run: who makes it, and its line in the audit log."""

    caller: Caller
    line: Line


class Gate(Door[Entered]):
    """The door of one listener.

    Args:
        rules: of every RPC served behind it.
        identify: who calls; by token on one listener, by certificate on the other.
        access: decides.
        journal: audit records.
        limit: of calls without an identity, by address.
        pool: threads for everything that may read the disk.
        metrics: counts calls.
    """

    def __init__(  # noqa: PLR0913  # the parts of the door, each given by the composition root
        self,
        rules: Mapping[str, Rule],
        *,
        identify: Identify,
        access: Access,
        journal: Journal,
        limit: SourceLimit,
        pool: Executor,
        metrics: CallMetrics | None = None,
        recheck_seconds: float = RECHECK_SECONDS,
    ) -> None:
        super().__init__(rules, metrics=metrics, recheck_seconds=recheck_seconds)
        self._identify = identify
        self._access = access
        self._journal = journal
        self._limit = limit
        self._pool = pool

    async def enter(self, call: Call) -> Entered:
        """The order of the door, up to the intent. Raises what the caller shall see."""
        if call.rule.anonymous:
            self._limit.take(call.peer)
        try:
            caller = await self._run(self._who, call)
        except Exhausted:
            raise
        except ApplianceError as refused:
            set_current_caller(await self._run(self._identify.stranger, call, refused))
            raise
        set_current_caller(caller)
        version = await self._run(self._access.decide, caller, call.rule, call.resource)
        self._access.check_fresh_mfa(caller, call.rule)
        line = await self._journal.intent(caller, call.rule.method, call.resource, version)
        return Entered(caller, line)

    async def recheck(self, call: Call, entered: Entered) -> None:
        """Identify and decide again; raises when a running stream must end."""
        caller = await self._run(self._who, call)
        if caller.principal != entered.caller.principal:
            raise Unauthenticated("the caller changed during the call")
        await self._run(self._access.decide, caller, call.rule, call.resource)

    async def leave(
        self, call: Call, entered: Entered | None, error: ApplianceError | None
    ) -> None:
        """Record the outcome, of a refused call with as much of its caller as is known."""
        outcome = error.reason if error else "OK"
        if entered is not None:
            await self._journal.result(entered.line, entered.caller, outcome)
            return
        if isinstance(error, Exhausted):
            # Over the limit, or the log itself is full: neither may fill the log.
            logger.warning("refused: %s", error.message, extra={"peer": call.peer})
            return
        caller = await self._known(call)
        if caller is not None:
            await self._journal.denied(caller, call.rule.method, call.resource, outcome)

    def _who(self, call: Call) -> Caller:
        """Identify; a credential that is refused counts against its address."""
        try:
            return self._identify.caller(call)
        except Unauthenticated:
            self._limit.take(call.peer)
            raise

    async def _known(self, call: Call) -> Caller | None:
        """Who makes a call that is refused, as far as is known; None over the limit."""
        with contextlib.suppress(Internal):
            return current_caller()
        try:
            return await self._run(self._who, call)
        except Exhausted:
            return None
        except ApplianceError as error:
            return await self._run(self._identify.stranger, call, error)

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
