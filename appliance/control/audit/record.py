"""One audit record: what is said about a call, and how it becomes a line.

Rules kept here:
* a record holds names, outcomes and counts; never a password, code, token, key, prompt or text of a
  dataset. Whoever makes an `AuditEntry` puts no request into it, only what it was about, and what
  is no name is not recorded as one;
* everything is bounded and cleaned, so that a hostile field makes neither a second line nor a huge
  one: a line is RFC 8785 JSON, in which control characters are escaped.

The attack: forging records or lines through names in a request. Called by `log` and the gate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import rfc8785

from appliance.core.errors import InvalidInput
from appliance.wire.recorded import shaped

KINDS = frozenset({"intent", "result", "denied", "inference", "event"})
MEMBERS = ("kind", "request_id", "principal", "method", "resource", "outcome", "source")
DAMAGED = "damaged"
"""Kind of what is no record any more."""
EPOCH = "1970-01-01T00:00:00Z"
MAX_TEXT = 1024
MAX_MEMBERS = 64
DEEPEST = 4
MAX_NUMBER = 2**53 - 1


@dataclass(frozen=True)
class AuditEntry:
    """What is recorded.

    Args:
        kind: `intent` before an effect, `result` after it, `denied`, `inference`, or `event` for
            what the appliance does by itself.
        request_id: joins an intent with its result, and both with the logs.
        principal: resource name of the caller; empty when nobody could be identified.
        method: full name of the RPC.
        resource: resource name it was about.
        outcome: `OK` or the reason of the error; empty for an intent.
        source: address the call came from.
        details: further facts, JSON values; no secrets.
    """

    kind: str
    request_id: str = ""
    principal: str = ""
    method: str = ""
    resource: str = ""
    outcome: str = ""
    source: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an unknown kind."""
        if self.kind not in KINDS:
            raise InvalidInput(f"{self.kind!r} is not a kind of audit record")


@dataclass(frozen=True)
class Prepared:
    """A record but for its place in the chain: `details` as canonical JSON, and plain members."""

    details: bytes
    members: Mapping[str, str]


def prepare(entry: AuditEntry, now: datetime) -> Prepared:
    """Clean and bound an entry, in the thread of the caller."""
    members = {
        "time": now.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "kind": entry.kind,
        "request_id": _text(entry.request_id),
        "principal": _text(entry.principal),
        "method": _text(entry.method),
        "resource": shaped(entry.resource),
        "outcome": _text(entry.outcome),
        "source": _text(entry.source),
    }
    return Prepared(rfc8785.dumps(_clean(entry.details, DEEPEST)), members)


def line_of(record: Prepared, sequence: int, previous: str, generation: int) -> bytes:
    """The line of a record at its place in the chain: RFC 8785 JSON, without line end.

    `generation` is how many writes of the state had been committed.
    """
    place = {"generation": generation, "sequence": sequence, "previous": previous}
    members = {**record.members, **place}
    # Of members that are text and whole numbers under ASCII names, `json` writes the same bytes as
    # RFC 8785 asks for, five times as fast. `details` may hold floats; its name sorts first.
    rest = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return b'{"details":' + record.details + b"," + rest[1:].encode()


def _text(value: str) -> str:
    # A lone surrogate is no Unicode text and has no UTF-8 form.
    return value[:MAX_TEXT].encode(errors="replace").decode()


def _clean(value: object, depth: int) -> Any:  # noqa: ANN401 - JSON
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= MAX_NUMBER else _text(str(value))
    if isinstance(value, float):
        return value if abs(value) <= MAX_NUMBER else str(value)  # NaN compares as false
    if depth and isinstance(value, Mapping):
        some = list(value.items())[:MAX_MEMBERS]
        return {_text(str(key)): _clean(item, depth - 1) for key, item in some}
    if depth and isinstance(value, (list, tuple)):
        return [_clean(item, depth - 1) for item in value[:MAX_MEMBERS]]
    return _text(str(value))


def record_at(line: bytes, sequence: int) -> dict[str, Any]:
    """The record at a place of the log; of kind `damaged` when it is none that belongs there."""
    try:
        record = json.loads(line)
        datetime.fromisoformat(record["time"])
        right = record["sequence"] == sequence and isinstance(record["details"], dict)
        right = right and all(isinstance(record[name], str) for name in MEMBERS)
    except (ValueError, TypeError, LookupError, RecursionError):
        right = False
    if right:
        return dict(record)
    blank = dict.fromkeys(MEMBERS, "")
    return {**blank, "kind": DAMAGED, "sequence": sequence, "time": EPOCH, "details": {}}
