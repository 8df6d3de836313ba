"""What ends is told in time: all of it in metrics, what somebody must see to in `status`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from appliance.api.system.v1 import system_service_pb2, system_service_pb2_grpc
from appliance.control.bootstrap.own_certificate import OwnCertificate
from appliance.control.metrics.expiry_metrics import ExpiryMetrics
from appliance.control.services.fleet.expirations import LATE, MOST
from appliance.control.store import tables
from appliance.core.errors import InvalidInput
from appliance.core.identity import PrincipalKind
from appliance.crypto.certs import Authority
from appliance.crypto.reading import serial_of
from tests.fakes.appliance import ADMINISTRATOR, Appliance, bearer
from tests.fakes.wire import shown


async def due(appliance: Appliance) -> dict[str, str]:
    stub = appliance.api(system_service_pb2_grpc.SystemServiceStub)
    answer = await stub.ListExpirations(
        system_service_pb2.ListExpirationsRequest(),
        metadata=bearer(appliance.session(ADMINISTRATOR)),
    )
    return {each.what: each.advice for each in answer.expirations}


def set_end(appliance: Appliance, table: Any, **columns: timedelta) -> None:
    values = {name: appliance.clock() + left for name, left in columns.items()}
    with appliance.database.write() as transaction:
        transaction.run(table.update().values(**values))


async def test_nothing_is_said_while_everything_renews(appliance: Appliance) -> None:
    appliance.node("gpu-1")
    set_end(appliance, tables.node, certificate_expire_time=timedelta(days=9))
    assert await due(appliance) == {}


async def test_what_should_have_renewed_is_said_and_of_an_evicted_machine_nothing(
    appliance: Appliance,
) -> None:
    appliance.node("gpu-1")
    appliance.node("gpu-2", state="EVICTED")
    late = LATE - timedelta(hours=1)
    set_end(appliance, tables.node, certificate_expire_time=late)
    set_end(appliance, tables.gateway, certificate_expire_time=late, front_expire_time=late)
    found = await due(appliance)
    assert list(found) == [
        "nodes/gpu-1 certificate",
        "gateways/gateway-1 certificate",
        "gateways/gateway-1 front certificate",
    ]
    assert "`appliance node create-join-token`" in found["nodes/gpu-1 certificate"]


async def test_tokens_of_applications_are_said_before_they_end(appliance: Appliance) -> None:
    appliance.project("demo")
    for name, lived, left in (
        ("long", 335, 29),
        ("fresh", 1, 29),
        ("short", 2, 0.5),
        ("over", 9, -1),
    ):
        appliance.service_account(name, "demo")
        with appliance.database.write() as transaction:
            now = appliance.clock()
            transaction.run(
                tables.token.update()
                .where(tables.token.c.service_account == name)
                .values(
                    create_time=now - timedelta(days=lived), expire_time=now + timedelta(days=left)
                )
            )
    found = await due(appliance)
    assert [what.split(" token ")[0] for what in found] == [
        "serviceAccounts/short",
        "serviceAccounts/long",
    ]
    assert all(
        "appliance service-account rotate-token serviceAccounts/" in a for a in found.values()
    )
    # Of one that was replaced somebody has thought.
    with appliance.database.write() as transaction:
        (row,) = transaction.all(
            tables.token.select().where(tables.token.c.service_account == "short")
        )
        end = appliance.clock() + timedelta(days=90)
        values = {**row._mapping, "id": "next", "replaces": row.id, "expire_time": end}
        transaction.run(tables.token.insert().values(**values))
    assert [what.split(" token ")[0] for what in await due(appliance)] == ["serviceAccounts/long"]


async def test_the_end_of_the_authority_is_said_thirty_days_before(appliance: Appliance) -> None:
    appliance.clock.forward(days=3650 - 29)
    assert "CA certificate" in await due(appliance)


async def test_the_metrics_hold_every_end_and_are_bounded(appliance: Appliance) -> None:
    appliance.project("demo")
    appliance.service_account("app", "demo")
    with appliance.database.write() as transaction:
        row = transaction.first(tables.token.select())
        assert row is not None
        for number in range(MOST + 50):
            values = dict(row._mapping) | {"id": f"t{number}"}
            transaction.run(tables.token.insert().values(**values))
    metrics = ExpiryMetrics(appliance.control.base.expirations, appliance.clock)
    ends, count = await asyncio.to_thread(lambda: list(metrics.collect()))
    labels = {sample.labels["what"]: sample.value for sample in ends.samples}
    assert len(labels) <= MOST + 10
    assert {"CA certificate", "controls/control certificate"} <= labels.keys()
    assert 9 < labels["gateways/gateway-1 certificate"] / 86_400 < 10
    assert count.samples[0].value == 0


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


def test_the_control_planes_own_certificate_is_renewed_when_it_is_a_day_old() -> None:
    clock = Clock()
    own = OwnCertificate(Authority.create("c1"), clock)
    first = own.current()
    assert own.current() is first
    assert own.end - clock() <= timedelta(days=10)
    clock.now += timedelta(hours=25)
    second = own.current()
    assert (second.key, second.certificate) != (first.key, first.certificate)
    assert own.current() is second
    # The clock was ahead for a while: what was made meanwhile does not begin yet.
    clock.now += timedelta(days=300)
    ahead = own.current()
    clock.now -= timedelta(days=300)
    assert own.current() is not ahead


def test_without_another_certificate_the_one_before_stays(monkeypatch: Any) -> None:
    clock = Clock()
    own = OwnCertificate(Authority.create("c1"), clock)
    first = own.current()
    clock.now += timedelta(days=2)

    def fail() -> None:
        raise InvalidInput("no")

    monkeypatch.setattr(own, "_issue", fail)
    assert own.current() is first


async def test_open_connections_go_on_when_it_is_renewed_and_new_ones_see_the_new(
    appliance: Appliance,
) -> None:
    own, port, ca = (
        appliance.control.base.own_certificate,
        appliance.control.api_port,
        appliance.ca_pem,
    )
    own._clock = lambda: datetime.now(UTC) - timedelta(hours=25)
    stub = appliance.api(system_service_pb2_grpc.SystemServiceStub)
    metadata = bearer(appliance.session(ADMINISTRATOR))
    ask = system_service_pb2.GetSystemRequest()
    await stub.GetSystem(ask, metadata=metadata)
    name = PrincipalKind.CONTROL.server_name
    before = await asyncio.to_thread(shown, port, ca, name)
    assert await asyncio.to_thread(shown, port, ca, name) == before
    own._clock = lambda: datetime.now(UTC)
    after = await asyncio.to_thread(shown, port, ca, name)
    assert after == serial_of(own.current().certificate) != before
    await stub.GetSystem(ask, metadata=metadata)
