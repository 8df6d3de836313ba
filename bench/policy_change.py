"""How long a change of rights takes with 50,000 bindings, and when gateways know of it.

A real control plane on loopback, with its background cross-check; changes go through the RPC with a
session; a gateway follows its view over mutual TLS. Beside it, once: the whole policy made anew as
version 0.1.0 did within each change, with a graph of roles that Casbin fills, for 10,000 bindings,
because its time is quadratic. A read between two changes, which is recorded twice like them, says
what the machine gives at that time.

Prints a table; `seconds_of` in the JSON has its rows.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import casbin

from appliance.api.access.v1 import binding_pb2
from appliance.api.access.v1 import binding_service_pb2 as rpc
from appliance.api.access.v1.binding_service_pb2_grpc import BindingServiceStub
from appliance.control.auth import cross_check, rules
from appliance.control.auth.roles import Roles
from appliance.control.auth.rules import ROLE_PREFIX, RoleLink
from appliance.control.store import tables
from appliance.core.identity import PrincipalKind, parse_name
from appliance.gateway.view import ControlClient as GatewayControl
from appliance.gateway.view import View
from appliance.wire.tls import channel
from bench.measure import AT_LEAST, AT_MOST, Bar, Outcome, run
from tests.fakes.appliance import ADMINISTRATOR, Appliance, bearer, make_data_directory, running

NAME = "policy_change"
BINDINGS = 50_000
BEFORE = 10_000
ROUNDS = 5
PROJECTS = 100
CHANGES = 100
PAUSE = 0.05
SESSIONS = 200
SLOWEST, LATEST = 50.0, 1000.0
"""Milliseconds."""
FASTER = 20.0


def main() -> int:
    """Run it; 1 when a bar does not hold."""
    return run(NAME, measure)


def measure() -> Outcome:
    """All of it, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measure(Path(folder), BINDINGS))


async def _measure(folder: Path, bindings: int) -> Outcome:
    make_data_directory(folder / "made")
    async with running(folder / "made", folder / "data") as appliance:
        links = list(_links(bindings))
        _fill(appliance, links)
        base = appliance.control.base
        began = time.perf_counter()
        base.policies.current()
        start = time.perf_counter() - began
        with ThreadPoolExecutor(1) as pool:
            check = asyncio.create_task(cross_check.run(base.policies, pool, base.events))
            changes, seen, reads = await _change(appliance)
            check.cancel()
            await asyncio.wait({check})
        rows = [
            ("a change through the RPC, p50", statistics.median(changes)),
            ("a change through the RPC, p95", _p95(changes)),
            ("a read through the same door in between, p95", _p95(reads)),
            ("until the gateway holds it, p95", _p95(seen)),
            ("until the gateway holds it, latest", max(seen)),
            ("the whole policy from the tables, once", start),
        ]
        few = links[:BEFORE]
        before = statistics.median(_as_before(base.policies.roles, few) for _ in range(ROUNDS))
    rows.append((f"0.1.0: the policy alone, with {len(few):,} bindings", before))
    print(f"{bindings:,} bindings, {CHANGES} changes")
    for words, seconds in rows:
        print(f"  {words:<52}{1000 * seconds:>12,.1f} ms", flush=True)
    faster = before / statistics.median(changes)
    bars = [
        Bar("a change through the RPC, p95", 1e3 * _p95(changes), "ms", AT_MOST, SLOWEST, CHANGES),
        Bar("until the gateway holds it, latest", 1e3 * max(seen), "ms", AT_MOST, LATEST, CHANGES),
        Bar("0.1.0 with a fifth / a change", faster, "times", AT_LEAST, FASTER, ROUNDS),
    ]
    return Outcome(bars, {"bindings": bindings, "seconds_of": dict(rows)})


def _links(count: int) -> Iterator[RoleLink]:
    """Five roles each in other projects, for so many people."""
    for number in range(count):
        person, place = divmod(number, 5)
        yield RoleLink(f"user:u{person}", "developer", f"p{(person + place) % PROJECTS}")


def _fill(appliance: Appliance, links: list[RoleLink]) -> None:
    now = appliance.clock()
    base = appliance.control.base
    with base.database.write() as transaction:
        for number in range(PROJECTS):
            transaction.run(
                tables.project.insert().values(id=f"p{number}", description="", create_time=now)
            )
        for start in range(0, len(links), 5_000):
            rows = [
                {
                    "id": f"{start + number:016x}",
                    "subject": link.subject,
                    "role": link.role,
                    "domain": link.domain,
                    "creator": "users/alice",
                    "create_time": now,
                }
                for number, link in enumerate(links[start : start + 5_000])
            ]
            transaction.run(tables.binding.insert().values(rows))
        people = sorted({link.subject.removeprefix("user:") for link in links})
        for start in range(0, len(people), 5_000):
            found = [
                {"id": name, "password_hash": "none", "locked": False, "create_time": now}
                for name in people[start : start + 5_000]
            ]
            transaction.run(tables.user.insert().values(found))
        transaction.change_policy()


async def _change(appliance: Appliance) -> tuple[list[float], list[float], list[float]]:
    """Seconds of each change until it returned, and until the gateway held it; and of reads."""
    for number in range(SESSIONS):
        appliance.session(f"u{number}")
    machine = appliance.gateway()
    view = View(10.0)
    async with channel(
        f"127.0.0.1:{appliance.control.machines_port}",
        appliance.ca_pem,
        machine.key,
        machine.certificate,
        server_name=PrincipalKind.CONTROL.server_name,
    ) as stream:
        watching = asyncio.create_task(GatewayControl(lambda: stream, view).watch(lambda _: None))
        await _until(lambda: view.last is not None)
        stub = appliance.api(BindingServiceStub)
        metadata = bearer(appliance.session(ADMINISTRATOR))
        changes, seen, reads = [], [], []
        for number in range(CHANGES):
            who, where = f"users/u{number // 2}", "projects/p99"
            began = time.perf_counter()
            if number % 2 == 0:
                wanted = binding_pb2.Binding(principal=who, role="roles/inference", scope=where)
                made = await stub.CreateBinding(
                    rpc.CreateBindingRequest(binding=wanted), metadata=metadata
                )
            else:
                await stub.DeleteBinding(
                    rpc.DeleteBindingRequest(name=made.name), metadata=metadata
                )
            changes.append(time.perf_counter() - began)
            _check_in_force(appliance, who, held=number % 2 == 0)
            given = number % 2 == 0
            await _until(partial(_gateway_says, view, who, where, given=given))
            seen.append(time.perf_counter() - began)
            await asyncio.sleep(PAUSE)
            began = time.perf_counter()
            await stub.ListBindings(
                rpc.ListBindingsRequest(scope="platform", page_size=1), metadata=metadata
            )
            reads.append(time.perf_counter() - began)
        watching.cancel()
        await asyncio.wait({watching})
    return changes, seen, reads


def _gateway_says(view: View, who: str, where: str, *, given: bool) -> bool:
    return view.current().may(who, where, "endpoints.infer") is given


async def _until(true: Callable[[], bool]) -> None:
    """Look every two milliseconds."""
    while not true():  # noqa: ASYNC110 - what is waited for sets no event
        await asyncio.sleep(0.002)


def _check_in_force(appliance: Appliance, who: str, *, held: bool) -> None:
    """The change counts when its call has returned."""
    principal = parse_name(who)
    allowed = appliance.control.base.policies.current().allowed(principal, "p99", "endpoints.infer")
    if allowed is not held:
        raise SystemExit(f"the change of {who} was not in force when its call returned")


class _Filled(casbin.persist.Adapter):  # type: ignore[misc]  # casbin is untyped
    """Fills Casbin's tables as version 0.1.0 did."""

    def __init__(self, links: list[RoleLink]) -> None:
        self._links = links

    def load_policy(self, model: casbin.Model) -> None:
        """One by one, each compared with all before it."""
        model.add_policies(
            "g", "g", [[k.subject, ROLE_PREFIX + k.role, k.domain] for k in self._links]
        )


def _as_before(roles: Roles, links: list[RoleLink]) -> float:
    """Seconds of one change as version 0.1.0 made it: check all rows, fill one graph of roles."""
    began = time.perf_counter()
    rules.check_links(links, {}, roles)
    model = casbin.Model()
    model.load_model_from_text(roles.model_text)
    casbin.Enforcer(model, _Filled(links))
    return time.perf_counter() - began


def _p95(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20, method="inclusive")[-1]


if __name__ == "__main__":
    sys.exit(main())
