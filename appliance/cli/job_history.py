"""What happened to a job, as rows of a table: each start, where it ran, who did what, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from appliance.cli.output import field, flowing, last, short

Row = dict[str, Any]


def what(event: Row) -> str:
    """`STARTED` for KIND_STARTED."""
    return field("kind")(event).removeprefix("KIND_")


def words(event: Row) -> str:
    """Where, why, and what came of it."""
    parts = []
    if event.get("shares"):
        parts.append("on " + ", ".join(map(_share, event["shares"])))
    parts.append(str(event.get("message") or ""))
    if event.get("outputs"):
        parts.append("made " + short("outputs")(event))
    return "; ".join(filter(None, parts))


COLUMNS = [
    ("EVENT", what),
    ("TIME", field("create_time")),
    ("START", field("epoch")),
    ("BY", last("actor")),
    flowing("WHAT", words),
]


def newest_first(events: Iterable[Row]) -> list[Row]:
    """Events that came oldest first; where some are not kept, a row says how many."""
    found: list[Row] = []
    before = 0
    for event in events:
        number = int(event["number"])
        if number > before + 1:
            missing = number - before - 1
            found.append({"kind": "...", "message": f"{missing} events are not kept"})
        before = number
        found.append(event)
    return found[::-1]


def _share(share: Row) -> str:
    """`n1: ranks 0-3, devices 0, 1, 2, 3`."""
    first, count = int(share.get("first_rank", 0)), int(share.get("ranks", 0))
    ranks = f"rank {first}" if count == 1 else f"ranks {first}-{first + count - 1}"
    return f"{last('node')(share)}: {ranks}, devices {field('devices')(share)}"
