"""What gateways are sent of 10,000 principals and 200 endpoints, and what it costs to make.

The real routing service over a state with so many live tokens, roles and endpoints, and the
gateway's own view. A change is one role that is taken away or given. Beside it what version 0.1.0
sent with each change: for each principal the names of the endpoints that it may ask, each decided
by the same policy.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from appliance.api.serving.v1 import routing_service_pb2 as rpc
from appliance.control.auth.rules import RoleLink
from appliance.control.store import tables
from appliance.core.identity import parse_name
from appliance.core.names import Name
from appliance.gateway.view import View
from bench.measure import AT_LEAST, AT_MOST, MIN_ROUNDS, Bar, Outcome, run
from tests.fakes.appliance import make_data_directory
from tests.fakes.crowd import fill, project_of
from tests.fakes.lab import Lab

NAME = "views"
PRINCIPALS, ENDPOINTS = 10_000, 200
ROUNDS = MIN_ROUNDS
MAX_MESSAGE = 72 << 10
CHANGE_BYTES = 1000
FASTER, SMALLER = 5.0, 1000.0
_HEAD = 2
"""Bytes before each text of a message, at least."""

T = TypeVar("T")


def main() -> int:
    """Run it; 1 when a bar does not hold."""
    return run(NAME, measure)


def measure() -> Outcome:
    """All of it, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(make_data_directory(Path(folder) / "data"))
        try:
            lab.project()
            fill(lab, PRINCIPALS, ENDPOINTS)
            return _measure(lab)
        finally:
            lab.close()


def _measure(lab: Lab) -> Outcome:
    view = View(10.0)
    making, (held, whole) = _seconds(lambda: lab.routing.messages(None))
    applying, _ = _seconds(lambda: _take(view, whole))
    rows: dict[str, list[float]] = {"made": [], "applied": [], "bytes": [], "0.1.0": []}
    before_bytes = 0
    for number in range(ROUNDS):
        _take_away(lab, number)
        made, (held, change) = _seconds(lambda held=held: lab.routing.messages(held))  # type: ignore[misc]  # a default
        applied, _ = _seconds(lambda change=change: _take(view, change))  # type: ignore[misc]
        before, before_bytes = _seconds(lambda view=view: _as_before(lab, view))  # type: ignore[misc]
        for row, value in (("made", made), ("applied", applied), ("0.1.0", before)):
            rows[row].append(value)
        rows["bytes"].append(_bytes(change))
    medians = {row: statistics.median(values) for row, values in rows.items()}
    largest = max(message.ByteSize() for message in whole)
    print(f"\n{NAME}: {PRINCIPALS:,} principals, {ENDPOINTS} endpoints")
    for words, seconds, size in (
        ("the whole, made", making, _bytes(whole)),
        ("the whole, applied", applying, _bytes(whole)),
        ("a change, made", medians["made"], medians["bytes"]),
        ("a change, applied", medians["applied"], medians["bytes"]),
        ("a change as in 0.1.0, made", medians["0.1.0"], before_bytes),
    ):
        print(f"  {words:32}{1e3 * seconds:>12,.2f} ms{size:>14,.0f} bytes", flush=True)
    faster, smaller = medians["0.1.0"] / medians["made"], before_bytes / medians["bytes"]
    bars = [
        Bar("largest message of the whole", largest, "B", AT_MOST, MAX_MESSAGE, ROUNDS),
        Bar("a change, largest", max(rows["bytes"]), "B", AT_MOST, CHANGE_BYTES, ROUNDS),
        Bar("0.1.0 / a change, bytes", smaller, "times", AT_LEAST, SMALLER, ROUNDS),
        Bar("0.1.0 / a change, time to make", faster, "times", AT_LEAST, FASTER, ROUNDS),
    ]
    return Outcome(bars, {"seconds_of": {"whole": making, "applied": applying, **medians}})


def _seconds(work: Callable[[], T]) -> tuple[float, T]:
    """Processor time of a piece of work, and its result."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def _bytes(messages: list[rpc.RoutingView]) -> int:
    return sum(message.ByteSize() for message in messages)


def _take(view: View, messages: list[rpc.RoutingView]) -> None:
    for message in messages:
        view.take(message)


def _take_away(lab: Lab, number: int) -> None:
    """Take an application's role away."""
    link = RoleLink(f"svc:app{number}", "inference", project_of(number))
    with lab.database.write() as transaction:
        transaction.run(tables.binding.delete().where(tables.binding.c.subject == link.subject))
        lab.base.policies.after_revoking(transaction, link)


def _as_before(lab: Lab, view: View) -> int:
    """Decide each principal about each endpoint; bytes of what may be, with all tokens."""
    policy, snapshot = lab.base.policies.current(), view.current()
    projects = [(name, Name.parse(name)["project"]) for name in snapshot.routes]
    size = 0
    for credential in snapshot.credentials.values():
        principal = parse_name(credential.principal)
        mine = [n for n, where in projects if policy.allowed(principal, where, "endpoints.infer")]
        size += sum(len(text) + _HEAD for text in (credential.principal, *mine))
        size += len(credential.principal) + len(credential.digest) + 4 * _HEAD
    return size


if __name__ == "__main__":
    sys.exit(main())
