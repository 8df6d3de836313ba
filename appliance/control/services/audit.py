"""Reading the audit chain: pages for people, checkpoints and raw lines to verify elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from appliance.api.audit.v1 import audit_service_pb2 as rpc
from appliance.api.audit.v1 import record_pb2
from appliance.control.audit.log import AuditLog
from appliance.control.services import paging
from appliance.control.services.caller import Caller
from appliance.control.services.resources import timestamp
from appliance.core.errors import InvalidInput

SEARCHED_AT_ONCE = 50_000
"""Records one page looks at: a rare filter gives short pages that go on, not a long wait."""
EXPORTED_AT_ONCE = 2_000
_OWN_MEMBERS = ("kind", "request_id", "principal", "method", "resource", "outcome", "source")


class Audit:
    """Reads the log of this appliance."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log

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
        token = paging.token_of((position,)) if position > 0 else ""
        return rpc.ListRecordsResponse(records=found, next_page_token=token)

    def checkpoint(self, caller: Caller) -> rpc.GetCheckpointResponse:
        """The newest signed checkpoint and the key to verify it with."""
        del caller
        note, size = self._log.checkpoint()
        return rpc.GetCheckpointResponse(
            checkpoint=record_pb2.Checkpoint(note=note.decode(), size=size),
            public_key=self._log.public_key_pem.decode(),
        )

    def export(self, caller: Caller, start: int, stop: int) -> tuple[bytes, int]:
        """Raw lines from `start`, at most some thousand; and where the next ones begin."""
        del caller
        if start < 0:
            wrong = "must not be negative"
            raise InvalidInput(f"from_sequence: {wrong}", fields={"from_sequence": wrong})
        upto = min(start + EXPORTED_AT_ONCE, stop)
        lines = [line + b"\n" for line in self._log.lines(start, upto)]
        return b"".join(lines), start + len(lines)

    @property
    def size(self) -> int:
        """How many records there are."""
        return self._log.size


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
        **{member: record[member] for member in _OWN_MEMBERS},
    )
