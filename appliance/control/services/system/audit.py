"""Reading the audit chain, and closed segments that leave it.

Pages for people, checkpoints and raw lines to verify elsewhere. What is archived or pruned, and by
whose signature that is believed, is decided in `appliance.control.audit.archive`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from appliance.api.audit.v1 import audit_service_pb2 as rpc
from appliance.api.audit.v1 import record_pb2
from appliance.control.audit.archive import Archive
from appliance.control.audit.closed import Segment
from appliance.control.audit.log import AuditLog
from appliance.control.audit.record import DAMAGED, MEMBERS, record_at
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.resources import timestamp
from appliance.core.errors import InvalidInput, Tampered

SEARCHED_AT_ONCE = 50_000
"""Records one page looks at: a rare filter gives short pages that go on, not a long wait."""
EXPORTED_AT_ONCE = 2_000
SEGMENTS_AT_ONCE = 20
"""A proof has some tens of kilobytes."""


class Audit:
    """Reads the log of this appliance."""

    def __init__(self, log: AuditLog, clock: Callable[[], datetime]) -> None:
        self._log, self._clock = log, clock

    def list(self, caller: Caller, request: rpc.ListRecordsRequest) -> rpc.ListRecordsResponse:
        """One page of records, newest first; with filters it may be short and still go on."""
        del caller
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, int)
        end = self._log.size if after is None else min(int(after[0]), self._log.size)
        found: list[record_pb2.Record] = []
        position = max(end, 0)
        for searched, record in enumerate(self._log.newest(before=position), 1):
            position = record["sequence"]
            if _matches(record, request):
                found.append(_resource(record))
            if len(found) == size or searched == SEARCHED_AT_ONCE:
                break
        token = paging.token_of((position,)) if position > self._log.first else ""
        return rpc.ListRecordsResponse(records=found, next_page_token=token)

    def checkpoint(self, caller: Caller) -> rpc.GetCheckpointResponse:
        """The newest signed checkpoint and the key to verify it with."""
        del caller
        note, size = self._log.checkpoint()
        return rpc.GetCheckpointResponse(
            checkpoint=record_pb2.Checkpoint(note=note.decode(), size=size),
            public_key=self._log.public_key_pem.decode(),
            time=timestamp(self._clock()),
        )

    def export(self, caller: Caller, start: int, stop: int) -> tuple[bytes, int]:
        """Raw lines from `start`, at most some thousand; and where the next ones begin."""
        del caller
        upto = min(start + EXPORTED_AT_ONCE, stop)
        lines = [line + b"\n" for line in self._log.lines(start, upto)]
        return b"".join(lines), start + len(lines)

    def export_range(self, request: rpc.ExportRecordsRequest) -> tuple[int, int]:
        """The first record to export, and the one after the last. Raises InvalidInput."""
        start, stop, first = request.from_sequence, request.to_sequence, self._log.first
        if start < 0 or 0 < start < first:
            wrong = f"must be {first} or more: records before it were archived"
            if start < 0:
                wrong = "must not be negative"
            raise InvalidInput(f"from_sequence {wrong}", fields={"from_sequence": wrong})
        if stop < 0:
            wrong = "must not be negative"
            raise InvalidInput(f"to_sequence {wrong}", fields={"to_sequence": wrong})
        return max(start, first), min(stop, self._log.size) if stop else self._log.size

    def segments(
        self, caller: Caller, request: rpc.ListSegmentsRequest
    ) -> rpc.ListSegmentsResponse:
        """One page of closed segments, oldest first."""
        del caller
        size = min(paging.page_size(request.page_size), SEGMENTS_AT_ONCE)
        after = paging.key_of(request.page_token, int)
        # Before the segments: what is archived meanwhile may be in both, and is missing in none.
        archived = self._log.closed.statement
        begin = -1 if after is None else int(after[0])
        left = [each for each in self._log.closed.segments if each.first > begin]
        leaving = self._log.leaving
        page = [_segment(each, leaving) for each in left[:size]]
        token = paging.token_of((page[-1].first_record,)) if len(left) > size else ""
        return rpc.ListSegmentsResponse(segments=page, next_page_token=token, archived=archived)

    def archive(
        self, caller: Caller, request: rpc.ArchiveSegmentsRequest
    ) -> rpc.ArchiveSegmentsResponse:
        """Delete closed segments that the caller holds."""
        del caller
        first = self._log.leaving.archive(request.size, request.root)
        return rpc.ArchiveSegmentsResponse(first_record=first)

    def prune(self, caller: Caller, request: rpc.PruneArchiveRequest) -> rpc.PruneArchiveResponse:
        """Sign that a part of an archive is deleted by a rule."""
        del caller
        if request.older_than_days < 1:
            wrong = "must be 1 or more: how many days records are kept"
            raise InvalidInput(f"older_than_days {wrong}", fields={"older_than_days": wrong})
        statement = self._log.leaving.prune(request.proof)
        return rpc.PruneArchiveResponse(statement=statement.dumps(), size=statement.size)


def _segment(segment: Segment, leaving: Archive) -> record_pb2.Segment:
    found = record_pb2.Segment(
        first_record=segment.first, size=segment.end.size, length_bytes=segment.look.size
    )
    # What is damaged is listed too, without what cannot be said of it.
    with contextlib.suppress(Tampered):
        found.proof = leaving.proof_of(segment)
    last = record_at(segment.last_record(), segment.end.size - 1)
    if last["kind"] != DAMAGED:
        found.close_time.FromDatetime(datetime.fromisoformat(last["time"]))
    return found


def _matches(record: Mapping[str, Any], request: rpc.ListRecordsRequest) -> bool:
    below = any(_is_below(name, request.resource) for name in _names(record))
    return (
        request.principal in {"", record["principal"]}
        and request.outcome in {"", record["outcome"]}
        and (not request.resource or below)
    )


def _is_below(name: str, resource: str) -> bool:
    return name == resource or name.startswith(f"{resource}/")


def _names(record: Mapping[str, Any]) -> Iterator[str]:
    """What a record is about: its resource, and what was named in the call or came out of it."""
    yield record["resource"]
    for part in ("asked", "made"):
        facts = record["details"].get(part)
        for value in facts.values() if isinstance(facts, dict) else ():
            # What a job made is a table of names and digests.
            values = value if isinstance(value, (list, dict)) else [value]
            yield from (name for name in values if isinstance(name, str))


def _resource(record: Mapping[str, Any]) -> record_pb2.Record:
    return record_pb2.Record(
        sequence=record["sequence"],
        time=timestamp(datetime.fromisoformat(record["time"])),
        details=json.dumps(record["details"], sort_keys=True),
        **{member: record[member] for member in MEMBERS},
    )
