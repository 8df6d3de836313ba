"""What gateways say of calls: recorded once in the audit chain, however often they say it.

Rules kept here:
* usage is durable in the audit chain before the call that reports it returns, and holds no text;
* entries are numbered within each boot of a gateway; which numbers are recorded is known, one by
  one, and what comes again is left out, also when half of a report had failed;
* what is on its way to the disk is waited for by a repeat, not written again;
* when a boot is over, the numbers that are missing are recorded (`usage.missing`): somebody took
  entries away where the gateway kept them. So is a boot that is over and never said so;
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
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from appliance.api.serving.v1 import routing_service_pb2 as rpc
from appliance.control.audit.log import AuditLog
from appliance.control.audit.record import MAX_NUMBER, AuditEntry
from appliance.control.audit.system import Records
from appliance.control.auth.credentials import Credentials
from appliance.control.services.common.caller import Caller
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core import names
from appliance.core.errors import AuditUnavailable, InvalidInput, Unavailable
from appliance.core.names import Name
from appliance.core.ranges import Ranges
from appliance.wire.admission import MAX_COUNTED_SOURCES

METHOD = "/appliance.api.inference.v1.InferenceService/Generate"
MISSING = "usage.missing"
MAX_USAGES = 1000
MAX_REFUSALS = MAX_COUNTED_SOURCES + 1
"""Rows of one report: as many as a gateway tells apart in a minute, and one for all others."""
MAX_REASONS = 32
MAX_WORD = 256
DURABLE_SECONDS = 30.0
READ_AGAIN = 10_000
"""Records that a start may have to read because nothing was noted since."""
KEPT = timedelta(days=400)
"""How long it is known what was recorded of a boot that reports no more."""
MAX_GAPS = 100
MAX_BOOTS = 1000
"""Of one gateway; a gateway that has more has no others to tell of."""
_BOOT = re.compile(r"[0-9a-f]{16}")
_boot = tables.usage_boot.c
_meta_usage = tables.meta.c.usage_noted

Boot = tuple[str, str]
"""A gateway, and one life of its process."""


@dataclass
class _Life:
    """One boot: what of it is recorded, what is on its way, and whether it has no more.

    `lock` is held by who records more of it; what is noted changes under the lock of all.
    """

    time: datetime
    recorded: Ranges = field(default_factory=Ranges)
    closed: bool = False
    waiting: dict[int, Future[int]] = field(default_factory=dict)
    since: int | None = None
    """How long the log was when the first of those was given to it."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class UsageRecords:
    """Takes in reports.

    Args:
        database: remembers what was recorded.
        log: gets the records.
        records: gets what is noticed.
        credentials: hears which sessions and tokens are used.
        clock: now, UTC.
    """

    def __init__(
        self,
        database: Database,
        log: AuditLog,
        records: Records,
        credentials: Credentials,
        clock: Callable[[], datetime],
    ) -> None:
        self._database, self._log, self._records, self._clock = database, log, records, clock
        self._credentials = credentials
        self._lock, self._noting = threading.Lock(), threading.Lock()
        self._lives: dict[Boot, _Life] = {}
        self._changed: set[Boot] = set()
        self._working: list[int] = []
        """How long the log was when each report began that is being recorded."""
        with database.read() as state:
            self._noted = int(state.value(tables.meta.select().with_only_columns(_meta_usage)))
            for row in state.all(tables.usage_boot.select()):
                life = _Life(row.time, Ranges(row.recorded), row.closed)
                self._lives[row.gateway, row.boot] = life
        self._read_since()

    def report(self, caller: Caller, request: rpc.ReportUsageRequest) -> rpc.ReportUsageResponse:
        """Record inference calls and counted refusals in the audit chain; durable when it returns.

        Raises AuditUnavailable when it cannot be made durable.
        """
        if len(request.usages) + len(request.entries) > MAX_USAGES:
            raise InvalidInput(f"report at most {MAX_USAGES} usages at a time")
        if len(request.refusals) > MAX_REFUSALS:
            raise InvalidInput(f"report at most {MAX_REFUSALS} rows of refusals at a time")
        self._keep_alive(request)
        self._record([_usage(caller, usage) for usage in request.usages])
        self._record([_refused(caller, row) for row in request.refusals])
        if request.boot:
            self._report_entries(caller, request)
        return rpc.ReportUsageResponse(recorded=True)

    def note(self) -> None:
        """Write down what was recorded, so that a start need not read far."""
        with self._noting:
            # One after the other: what is noted is never older than what was noted before.
            self._note()

    def _note(self) -> None:
        now = self._clock()
        with self._lock:
            # What is being recorded now is not known yet: a start has to read it.
            late = [life.since for life in self._lives.values() if life.since is not None]
            size = min([*self._working, *late, self._log.size])
            changed, self._changed = self._changed, set()
            if not changed and size - self._noted < READ_AGAIN:
                return
            # Of one that was forgotten for others there is no row any more.
            rows = [_row(key, self._lives[key]) for key in changed if key in self._lives]
        try:
            with self._database.write() as transaction:
                for gateway, boot in changed:
                    same = (_boot.gateway == gateway) & (_boot.boot == boot)
                    transaction.run(tables.usage_boot.delete().where(same))
                for row in rows:
                    transaction.run(tables.usage_boot.insert().values(**row))
                transaction.run(tables.usage_boot.delete().where(_boot.time < now - KEPT))
                transaction.run(tables.meta.update().values(usage_noted=size))
        except BaseException:
            with self._lock:
                self._changed |= changed
            raise
        self._noted = size

    def _keep_alive(self, request: rpc.ReportUsageRequest) -> None:
        """What asks models through a gateway is used; a session does not end meanwhile."""
        used = {entry.usage.credential for entry in request.entries if not entry.usage.reason}
        used.update(request.in_use[:MAX_USAGES])
        self._credentials.use(sorted(filter(_word, used)))

    def _report_entries(self, caller: Caller, request: rpc.ReportUsageRequest) -> None:
        numbers = [entry.number for entry in request.entries]
        right = all(1 <= number <= MAX_NUMBER for number in (*numbers, request.last or 1))
        if not _BOOT.fullmatch(request.boot) or not right or len(set(numbers)) < len(numbers):
            raise InvalidInput("entries have a boot, and each a number of its own from 1 on")
        key = (caller.principal.id, request.boot)
        life, before = self._life(key)
        with life.lock, self._at_work(key, life):
            for other, ended in before.items():
                self._close(other, ended, None)
            for entry in request.entries:
                if entry.number not in life.recorded and entry.number not in life.waiting:
                    record = _entry(caller, request.boot, entry)
                    life.waiting[entry.number] = self._log.append(record)
            self._wait(life)
            if request.last and not life.closed:
                self._close(key, life, request.last)
        if request.last or before:
            # What is closed must be closed after a restart, too.
            self.note()

    def _life(self, key: Boot) -> tuple[_Life, dict[Boot, _Life]]:
        """What is known of a boot; when it is new, those of its gateway that never said their end.

        A gateway tells what is left of earlier ones before it tells anything of its own.
        """
        with self._lock:
            known = self._lives.get(key)
            if known is not None:
                known.time = self._clock()
                return known, {}
            mine = [each for each in self._lives if each[0] == key[0]]
            for oldest in sorted(mine, key=lambda each: self._lives[each].time)[: -MAX_BOOTS + 1]:
                del self._lives[oldest]
                self._changed.add(oldest)
            life = self._lives[key] = _Life(self._clock())
            others = {each: self._lives[each] for each in mine if each in self._lives}
            return life, {each: other for each, other in others.items() if not other.closed}

    def _wait(self, life: _Life) -> None:
        """Until all that waits is durable. Raises what could not be, and Unavailable when late."""
        failed: AuditUnavailable | None = None
        for number, future in list(life.waiting.items()):
            try:
                future.result(DURABLE_SECONDS)
            except TimeoutError as error:
                raise Unavailable(
                    "the audit log is slow: repeat the report", retry_after=5.0
                ) from error
            except AuditUnavailable as error:
                failed = error
                del life.waiting[number]
            else:
                with self._lock:
                    life.recorded.add(number)
                del life.waiting[number]
        if failed is not None:
            raise failed

    def _close(self, key: Boot, life: _Life, last: int | None) -> None:
        """A boot is over: record what is missing of it, once. `last` is None when it never said."""
        gateway = names.gateway(key[0])
        if last is None:
            self._records.record(MISSING, gateway, boot=key[1], after=life.recorded.newest)
        else:
            for first, end in itertools.islice(life.recorded.gaps(last), MAX_GAPS):
                self._records.record(MISSING, gateway, boot=key[1], first=first, last=end)
        with self._lock:
            life.closed = True
            self._changed.add(key)

    @contextlib.contextmanager
    def _at_work(self, key: Boot, life: _Life) -> Iterator[None]:
        with self._lock:
            begin = self._log.size
            self._working.append(begin)
        try:
            yield
        finally:
            with self._lock:
                self._working.remove(begin)
                # What is late may become durable at any time: a start reads from before it.
                since = begin if life.since is None else life.since
                life.since = since if life.waiting else None
                self._changed.add(key)

    def _record(self, entries: Sequence[AuditEntry]) -> None:
        waiting: list[Future[int]] = [self._log.append(entry) for entry in entries]
        for future in waiting:
            future.result(DURABLE_SECONDS)

    def _read_since(self) -> None:
        """What was recorded after it was noted last."""
        for line in self._log.lines(max(self._noted, self._log.first)):
            if b'"boot":"' not in line:
                continue
            # One that is damaged is told of by who verifies the log.
            with contextlib.suppress(ValueError, LookupError, TypeError):
                record = json.loads(line)
                details = record["details"]
                key = (str(details["gateway"]), str(details["boot"]))
                if record["kind"] in {"inference", "denied"}:
                    life = self._lives.setdefault(key, _Life(self._clock()))
                    life.recorded.add(int(details["number"]))
                    self._changed.add(key)


def _row(key: Boot, life: _Life) -> dict[str, Any]:
    """Of the table."""
    return {
        "gateway": key[0],
        "boot": key[1],
        "recorded": life.recorded.spans,
        "closed": life.closed,
        "time": life.time,
    }


def _entry(caller: Caller, boot: str, entry: rpc.UsageEntry) -> AuditEntry:
    """One audit record that says which entry it is of."""
    made = _usage(caller, entry.usage)
    if entry.HasField("refusals"):
        made = _refused(caller, entry.refusals)
    place = {"boot": boot, "number": entry.number}
    return dataclasses.replace(made, details={**made.details, **place})


def _usage(caller: Caller, usage: rpc.Usage) -> AuditEntry:
    """One audit record; ids, names and numbers only."""
    return AuditEntry(
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
            "start_time": _time(usage),
            **({"credential": word} if (word := _word(usage.credential)) else {}),
        },
    )


def _refused(caller: Caller, row: rpc.Refusals) -> AuditEntry:
    """One audit record of everything that a source, or a caller over its budget, was refused."""
    reasons, methods = _counts(row.reasons), _counts(row.methods)
    return AuditEntry(
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
    return text if len(text) <= MAX_WORD and text.isprintable() and " " not in text else ""


def _resource(text: str) -> str:
    try:
        return str(Name.parse(text, "endpoint"))
    except InvalidInput:
        return ""


def _time(usage: rpc.Usage) -> str:
    with contextlib.suppress(ValueError):
        return usage.start_time.ToJsonString() if usage.HasField("start_time") else ""
    return ""


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds) if math.isfinite(1000 * seconds) else 0
