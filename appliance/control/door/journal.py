"""Writes the gate's audit records: an intent and a result for each call, `denied` for refused ones.

Rules kept here:
* the intent is durable before this returns; if it cannot be, the call is refused;
* the result names whoever an anonymous caller turned out to be (`Caller.notes`);
* a result that cannot be written does not undo what happened: its intent stands, the log says so
  loudly, and the caller is told that the outcome was not recorded;
* refused calls that get no record of their own become one record a minute for each source or known
  caller, with how many, why and of what.

The attack: filling the log with what costs nothing to cause. Called by the gate and, once a minute,
by the composition root.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from appliance.control.audit.log import AuditLog
from appliance.control.audit.record import AuditEntry
from appliance.control.services.common.caller import Caller
from appliance.core.errors import AuditUnavailable
from appliance.wire.admission import Refused

logger = logging.getLogger(__name__)

RECORD_SECONDS = 60.0
"""Time over which refusals are counted into one record."""


@dataclass(frozen=True)
class RecordedIntent:
    """An intent in the log."""

    sequence: int
    method: str
    resource: str
    asked: Mapping[str, object] = field(default_factory=dict)


class Journal:
    """Writes the audit records of calls."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log

    async def intent(  # the members of a record
        self,
        caller: Caller,
        method: str,
        resource: str,
        policy: int,
        asked: Mapping[str, object],
    ) -> RecordedIntent:
        """Record that a call is about to happen. Raises AuditUnavailable: then it must not."""
        details: dict[str, object] = {"policy_version": policy}
        if caller.credential:
            details["credential"] = caller.credential
        sequence = await self._append(
            "intent", caller, method, resource, "", details | _some(asked=asked)
        )
        return RecordedIntent(sequence, method, resource, asked)

    async def result(
        self, line: RecordedIntent, caller: Caller, outcome: str, made: Mapping[str, object]
    ) -> None:
        """Record what came out of a call: also what it was asked, so that one record says it."""
        try:
            await self._append(
                "result",
                caller,
                line.method,
                line.resource,
                outcome,
                {
                    **caller.notes,
                    **_some(asked=line.asked, made=made),
                    "intent": line.sequence,
                },
            )
        except AuditUnavailable as error:
            logger.critical(
                "the outcome of %s could not be recorded: %s",
                line.method,
                error.message,
                extra={"intent": line.sequence, "outcome": outcome},
            )
            raise AuditUnavailable(
                "the call ended, but its outcome could not be recorded: read the resource to see "
                "what happened, and look at the disk of the control plane"
            ) from error

    async def denied(  # the members of a record
        self,
        caller: Caller,
        method: str,
        resource: str,
        outcome: str,
        asked: Mapping[str, object],
    ) -> None:
        """Record a call that was refused before it began. A log that is full does not hide why."""
        try:
            details = {**caller.notes, **_some(asked=asked)}
            await self._append("denied", caller, method, resource, outcome, details)
        except AuditUnavailable as error:
            logger.critical("a refused call could not be recorded: %s", error.message)

    async def counted(self, rows: Sequence[Refused]) -> None:
        """Record refusals that were counted. What cannot be recorded goes to the log instead.

        All of them are with the audit log before this waits, so that whoever is cancelled in it
        loses none.
        """
        records = [(row, self._log.append(_entry_of(row))) for row in rows]
        for row, record in records:
            try:
                await asyncio.wrap_future(record)
            except AuditUnavailable as error:
                logger.critical(
                    "refused calls could not be recorded: %s",
                    error.message,
                    extra={"peer": row.source, "refused": row.count, "reasons": row.reasons},
                )

    async def _append(  # noqa: PLR0913  # the members of a record
        self,
        kind: str,
        caller: Caller,
        method: str,
        resource: str,
        outcome: str,
        details: Mapping[str, object],
    ) -> int:
        rest = dict(details)
        principal = caller.principal.name or str(rest.pop("principal", ""))
        entry = AuditEntry(
            kind=kind,
            request_id=caller.request_id,
            principal=principal,
            method=method,
            resource=resource,
            outcome=outcome,
            source=caller.source,
            details=rest,
        )
        return await asyncio.wrap_future(self._log.append(entry))


def _entry_of(row: Refused) -> AuditEntry:
    return AuditEntry(
        kind="denied",
        principal=row.principal,
        outcome=max(row.reasons, key=lambda reason: row.reasons[reason]),
        source=row.source,
        details={"count": row.count, "reasons": row.reasons, "methods": row.methods},
    )


def _some(**facts: Mapping[str, object]) -> dict[str, object]:
    """Those that say something."""
    return {name: values for name, values in facts.items() if values}
