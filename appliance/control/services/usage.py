"""What gateways say of calls: recorded once in the audit chain, however often they say it.

Rules kept here:
* usage is durable in the audit chain before the call that reports it returns, and holds no text;
* the entries of each boot of a gateway are numbered without a gap; up to which number they are
  recorded is known for each boot, and what comes again is left out;
* a number that is missing is recorded (`usage.missing`): somebody took entries away where the
  gateway kept them;
* which numbers were recorded is in the records themselves; the table is written now and then, and a
  start reads what is in the log since.

The attack: calls hidden by deleting what a gateway has on its disk; calls counted twice by sending
a report again. Called by the routing RPCs, at the start, and once a minute by the composition root.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timedelta

from appliance.api.serving.v1 import routing_service_pb2 as rpc
from appliance.control.audit.log import AuditLog
from appliance.control.audit.record import Entry
from appliance.control.audit.system import Records
from appliance.control.auth.sessions import Sessions
from appliance.control.services.caller import Caller
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.errors import InvalidInput
from appliance.core.names import Name
from appliance.wire.admission import MAX_COUNTED_SOURCES

METHOD = "/appliance.api.inference.v1.InferenceService/Generate"
MISSING = "usage.missing"
MOST_USAGES = 1000
MAX_REFUSALS = MAX_COUNTED_SOURCES + 1
"""Rows of one report: as many as a gateway tells apart in a minute, and one for all others."""
MAX_REASONS = 32
LONGEST_WORD = 256
DURABLE_SECONDS = 30.0
READ_AGAIN = 10_000
"""Records that a start may have to read because nothing was noted since."""
KEPT = timedelta(days=90)
"""How long it is known what was recorded of a boot that reports no more."""
_BOOT = re.compile(r"[0-9a-f]{16}")
_boot = tables.usage_boot.c
_meta_usage = tables.meta.c.usage_noted

Boot = tuple[str, str]
"""A gateway, and one life of its process."""


@dataclass
class _Mark:
    """Up to which number a boot is recorded; `lock` is held by who records more of it."""

    number: int
    time: datetime
    lock: threading.Lock


class UsageRecords:
    """Takes in reports.

    Args:
        database: remembers what was recorded.
        log: gets the records.
        records: gets what is noticed.
        sessions: hears which ones are used.
        clock: now, UTC.
    """

    def __init__(
        self,
        database: Database,
        log: AuditLog,
        records: Records,
        sessions: Sessions,
        clock: Callable[[], datetime],
    ) -> None:
        self._database, self._log, self._records, self._clock = database, log, records, clock
        self._sessions = sessions
        self._lock = threading.Lock()
        self._marks: dict[Boot, _Mark] = {}
        self._changed: set[Boot] = set()
        self._working: list[int] = []
        """How long the log was when each report began that is being recorded."""
        with database.read() as state:
            self._noted = int(state.value(tables.meta.select().with_only_columns(_meta_usage)))
            for row in state.all(tables.usage_boot.select()):
                mark = _Mark(row.number, row.time, threading.Lock())
                self._marks[row.gateway, row.boot] = mark
        self._read_since()

    def report(self, caller: Caller, request: rpc.ReportUsageRequest) -> rpc.ReportUsageResponse:
        """Record inference calls and counted refusals in the audit chain; durable when it returns.

        Raises AuditUnavailable when it cannot be made durable.
        """
        if len(request.usages) + len(request.entries) > MOST_USAGES:
            raise InvalidInput(f"report at most {MOST_USAGES} usages at a time")
        if len(request.refusals) > MAX_REFUSALS:
            raise InvalidInput(f"report at most {MAX_REFUSALS} rows of refusals at a time")
        self._keep_alive(request)
        self._record([_usage(caller, usage) for usage in request.usages])
        self._record([_refused(caller, row) for row in request.refusals])
        if request.entries:
            self._report_entries(caller, request)
        return rpc.ReportUsageResponse()

    def _keep_alive(self, request: rpc.ReportUsageRequest) -> None:
        """A session that asks models through a gateway is used, and does not end meanwhile."""
        used = {entry.usage.credential for entry in request.entries if not entry.usage.reason}
        used.update(request.in_use[:MOST_USAGES])
        self._sessions.use(sorted(filter(_word, used)))

    def note(self) -> None:
        """Write down what was recorded, so that a start need not read far."""
        with self._lock:
            # What is being recorded now is not known by its mark yet: a start has to read it.
            size, now = min([*self._working, self._log.size]), self._clock()
            changed = self._changed
            if not changed and size - self._noted < READ_AGAIN:
                return
            with self._database.write() as transaction:
                for gateway, boot in changed:
                    mark = self._marks[gateway, boot]
                    same = (_boot.gateway == gateway) & (_boot.boot == boot)
                    transaction.run(tables.usage_boot.delete().where(same))
                    values = {"number": mark.number, "time": mark.time}
                    insert = tables.usage_boot.insert()
                    transaction.run(insert.values(gateway=gateway, boot=boot, **values))
                transaction.run(tables.usage_boot.delete().where(_boot.time < now - KEPT))
                transaction.run(tables.meta.update().values(usage_noted=size))
            self._noted, self._changed = size, set()
            self._marks = {
                key: mark for key, mark in self._marks.items() if mark.time >= now - KEPT
            }

    def _report_entries(self, caller: Caller, request: rpc.ReportUsageRequest) -> None:
        numbers = [entry.number for entry in request.entries]
        if not _BOOT.fullmatch(request.boot) or numbers[0] < 1 or _gaps(numbers):
            raise InvalidInput("entries have a boot, and numbers that follow each other")
        key = (caller.principal.id, request.boot)
        with self._lock:
            mark = self._marks.setdefault(key, _Mark(0, self._clock(), threading.Lock()))
        with mark.lock, self._at_work():
            if numbers[0] > mark.number + 1:
                span = {"boot": request.boot, "first": mark.number + 1, "last": numbers[0] - 1}
                self._records.note(MISSING, caller.principal.name, "OK", **span)
            new = [entry for entry in request.entries if entry.number > mark.number]
            if not new:
                return
            self._record([_entry(caller, request.boot, entry) for entry in new])
            with self._lock:
                mark.number, mark.time = new[-1].number, self._clock()
                self._changed.add(key)

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        with self._lock:
            begin = self._log.size
            self._working.append(begin)
        try:
            yield
        finally:
            with self._lock:
                self._working.remove(begin)

    def _record(self, entries: Sequence[Entry]) -> None:
        waiting: list[Future[int]] = [self._log.append(entry) for entry in entries]
        for future in waiting:
            future.result(DURABLE_SECONDS)

    def _read_since(self) -> None:
        """What was recorded after it was noted last."""
        for line in self._log.lines(max(self._noted, self._log.first)):
            if b'"boot":"' not in line:
                continue
            record = json.loads(line)
            details = record["details"]
            key = (str(details.get("gateway")), str(details.get("boot")))
            if record["kind"] in {"inference", "denied"} and key[1] and "number" in details:
                known = self._marks.setdefault(key, _Mark(0, self._clock(), threading.Lock()))
                known.number = max(known.number, int(details["number"]))
                self._changed.add(key)


def _gaps(numbers: Sequence[int]) -> bool:
    return any(after != before + 1 for before, after in itertools.pairwise(numbers))


def _entry(caller: Caller, boot: str, entry: rpc.UsageEntry) -> Entry:
    """One audit record that says which entry it is of."""
    made = _usage(caller, entry.usage)
    if entry.HasField("refusals"):
        made = _refused(caller, entry.refusals)
    place = {"boot": boot, "number": entry.number}
    return dataclasses.replace(made, details={**made.details, **place})


def _usage(caller: Caller, usage: rpc.Usage) -> Entry:
    """One audit record; ids, names and numbers only."""
    return Entry(
        kind="inference",
        request_id=_word(usage.request_id),
        principal=_word(usage.principal),
        method=METHOD,
        resource=_resource(usage.endpoint),
        outcome=_word(usage.reason) or "OK",
        source=_word(usage.source),
        details={
            "gateway": caller.principal.id,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "continuations": usage.continuations,
            "first_token_milliseconds": _milliseconds(usage.first_token_seconds),
            "milliseconds": _milliseconds(usage.seconds),
            "start_time": usage.start_time.ToJsonString() if usage.HasField("start_time") else "",
            **({"credential": word} if (word := _word(usage.credential)) else {}),
        },
    )


def _refused(caller: Caller, row: rpc.Refusals) -> Entry:
    """One audit record of everything that a source, or a caller over its budget, was refused."""
    reasons, methods = _counts(row.reasons), _counts(row.methods)
    return Entry(
        kind="denied",
        principal=_word(row.principal),
        outcome=max(reasons, key=lambda reason: reasons[reason], default=""),
        source=_word(row.source),
        details={
            "gateway": caller.principal.id,
            "count": row.count,
            "reasons": reasons,
            "methods": methods,
        },
    )


def _counts(counts: Mapping[str, int]) -> dict[str, int]:
    """How many of what, by names of ours; not more names than a gateway tells apart."""
    named = ((_word(name), count) for name, count in sorted(counts.items())[:MAX_REASONS])
    return {name: count for name, count in named if name}


def _word(text: str) -> str:
    """An id or a name; what a caller wrote instead of one is left out, for it could be anything."""
    return text if len(text) <= LONGEST_WORD and text.isprintable() and " " not in text else ""


def _resource(text: str) -> str:
    try:
        return str(Name.parse(text, "endpoint"))
    except InvalidInput:
        return ""


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds) if math.isfinite(1000 * seconds) else 0
