"""A real gateway of a real control plane: it joins, renews, comes back, and cannot ask for more."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from appliance.api.agent.v1 import enrolment_service_pb2, enrolment_service_pb2_grpc
from appliance.api.serving.v1 import (
    gateway_service_pb2,
    gateway_service_pb2_grpc,
    routing_service_pb2,
    routing_service_pb2_grpc,
)
from appliance.control.bootstrap import parts
from appliance.control.services.common.caller import Caller
from appliance.control.services.fleet import front_certificates
from appliance.control.store import tables
from appliance.core.errors import (
    Conflict,
    FailedPrecondition,
    InvalidInput,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from appliance.core.files import write_durably
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import make_csr, new_private_key
from appliance.crypto.reading import not_after, peer_identity, serial_of
from appliance.gateway.config import GatewayConfig, GatewayListen
from appliance.gateway.front import FILE
from appliance.gateway.identity import begin
from appliance.gateway.main import Gateway
from appliance.machine import joining, kinds
from appliance.machine.control_plane import ControlAddress
from appliance.machine.identity import Identity, IdentityStore
from tests.fakes.appliance import ADMINISTRATOR, Appliance, Machine, bearer, error_of
from tests.fakes.gateway import until
from tests.fakes.wire import hosts_of

GATEWAY_2 = Principal(PrincipalKind.GATEWAY, "gateway-2")


def configuration(appliance: Appliance, folder: Path) -> GatewayConfig:
    control = appliance.control
    return GatewayConfig(
        cluster_id=control.base.keyring.cluster_id,
        ca=appliance.folder / "ca.pem",
        control=f"127.0.0.1:{control.machines_port}",
        join=f"127.0.0.1:{control.api_port}",
        state=folder / "state",
        join_token=folder / "join.token",
        listen=GatewayListen("127.0.0.1:0", "127.0.0.1:0"),
        metrics="127.0.0.1:0",
    )


def gateways(appliance: Appliance) -> Any:
    return appliance.api(gateway_service_pb2_grpc.GatewayServiceStub)


def admin(appliance: Appliance) -> Any:
    return bearer(appliance.session(ADMINISTRATOR))


async def token_for(appliance: Appliance, gateway: str, *hosts: str) -> str:
    request = gateway_service_pb2.CreateGatewayJoinTokenRequest(gateway_id=gateway, hosts=hosts)
    made = await gateways(appliance).CreateGatewayJoinToken(request, metadata=admin(appliance))
    return str(made.token)


async def bring_token(appliance: Appliance, folder: Path, *hosts: str) -> None:
    token = await token_for(appliance, "gateway-2", *hosts)
    write_durably(folder / "join.token", token.encode())


def routing(appliance: Appliance, identity: Identity) -> Any:
    machine = Machine(identity.key_pem, identity.certificate_pem)
    return appliance.machines(routing_service_pb2_grpc.RoutingServiceStub, machine)


def renew(appliance: Appliance, identity: Identity) -> Any:
    request = routing_service_pb2.RenewCertificateRequest(
        certificate_request=make_csr(new_private_key()).decode()
    )
    return routing(appliance, identity).RenewCertificate(request)


def renew_front(appliance: Appliance, identity: Identity) -> Any:
    request = routing_service_pb2.RenewFrontCertificateRequest(
        certificate_request=make_csr(new_private_key()).decode()
    )
    return routing(appliance, identity).RenewFrontCertificate(request)


def row_of(appliance: Appliance, gateway: str = "gateway-2") -> Any:
    with appliance.database.read() as state:
        return state.first(tables.gateway.select().where(tables.gateway.c.id == gateway))


async def test_it_joins_by_a_token_and_serves_under_the_names_on_record(
    appliance: Appliance, tmp_path: Path
) -> None:
    await bring_token(appliance, tmp_path, "llm.example", "192.0.2.7", "2001:db8::7")
    keeper, front = await begin(configuration(appliance, tmp_path))
    assert keeper.identity.machine == GATEWAY_2
    assert not (tmp_path / "join.token").exists()
    shown, cluster = front.pair.certificate, keeper.identity.cluster
    addresses = ["127.0.0.1", "::1", "192.0.2.7", "2001:db8::7"]
    assert hosts_of(shown) == (["localhost", "llm.example"], addresses)
    assert peer_identity(shown, cluster, datetime.now(UTC), need="server") == GATEWAY_2
    row = row_of(appliance)
    assert (row.state, row.hosts) == ("READY", ["llm.example", "192.0.2.7", "2001:db8::7"])
    assert row.certificate_expire_time == not_after(keeper.identity.certificate_pem)
    gateway = Gateway(configuration(appliance, tmp_path), keeper, front)
    stop = asyncio.Event()
    running = asyncio.create_task(gateway.run(stop))
    try:
        await until(lambda: gateway.view.decides)
        before = gateway.keeper.identity
        await gateway.keeper.renew()
        assert gateway.keeper.identity.key_pem != before.key_pem
        # The new one is in use: its stream is open.
        serial = serial_of(gateway.keeper.identity.certificate_pem)
        await until(lambda: row_of(appliance).certificate_used)
        assert row_of(appliance).certificate_serial == serial
        assert gateway.view.decides
    finally:
        stop.set()
        await running
    listed = await gateways(appliance).ListGateways(
        gateway_service_pb2.ListGatewaysRequest(), metadata=admin(appliance)
    )
    assert [gateway.name for gateway in listed.gateways] == [
        "gateways/gateway-1",
        "gateways/gateway-2",
    ]


async def test_the_gateway_of_init_serves_with_nothing_to_type(appliance: Appliance) -> None:
    made = configuration(appliance, appliance.folder / "gateway")
    keeper, front = await begin(made)
    assert keeper.identity.machine.id == "gateway-1"
    assert hosts_of(front.pair.certificate) == (["localhost"], ["127.0.0.1", "::1"])


async def joined_ago(appliance: Appliance, folder: Path, days: int) -> Identity:
    """The gateway joined so many days ago; certificates are checked by the real clock, too."""
    appliance.clock.forward(days=-days)
    await bring_token(appliance, folder)
    config = configuration(appliance, folder)
    pinned = ControlAddress(
        config.ca, config.api, config.control, appliance.control.base.keyring.ca.fingerprint()
    )
    (folder / "state").mkdir(mode=0o700, exist_ok=True)
    store = IdentityStore(kinds.GATEWAY, folder / "state", pinned)
    identity = await store.join(folder / "join.token")
    appliance.clock.forward(days=days)
    return identity


@pytest.mark.parametrize("days", [11, 99])
async def test_one_whose_certificate_has_ended_comes_back_by_itself(
    appliance: Appliance, tmp_path: Path, days: int
) -> None:
    ended = await joined_ago(appliance, tmp_path, days)
    # What it showed has ended, too: nobody would believe it.
    key, ring = new_private_key(), appliance.control.base.keyring
    over = front_certificates.issue(
        ring.ca, GATEWAY_2, [], make_csr(key).decode(), datetime.now(UTC) - timedelta(days=days)
    )
    write_durably(tmp_path / "state" / FILE, key + over)
    keeper, front = await begin(configuration(appliance, tmp_path))
    assert keeper.identity.machine == ended.machine
    assert keeper.identity.key_pem != ended.key_pem
    assert not_after(front.pair.certificate) > datetime.now(UTC)


async def test_one_that_runs_when_it_ends_comes_back_by_itself(
    appliance: Appliance, tmp_path: Path
) -> None:
    """Nobody renewed in time: the control plane was away."""
    ended = await joined_ago(appliance, tmp_path, 11)
    keeper, front = await begin(configuration(appliance, tmp_path))
    keeper._identity = ended
    with appliance.database.write() as transaction:
        transaction.run(
            tables.gateway.update()
            .where(tables.gateway.c.id == "gateway-2")
            .values(certificate_serial=serial_of(ended.certificate_pem), certificate_used=True)
        )
    gateway = Gateway(configuration(appliance, tmp_path), keeper, front)
    stop = asyncio.Event()
    running = asyncio.create_task(gateway.run(stop))
    try:
        await until(lambda: gateway.view.decides, 20.0)
        assert keeper.identity != ended
    finally:
        stop.set()
        await running


@pytest.mark.attack
async def test_an_evicted_one_does_not_come_back_by_its_key_but_by_a_token(
    appliance: Appliance, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setattr(joining, "LOOK_SECONDS", 0.05)
    await joined_ago(appliance, tmp_path, 11)
    await token_for(appliance, "gateway-2")  # void with the eviction
    evicted = await gateways(appliance).EvictGateway(
        gateway_service_pb2.EvictGatewayRequest(name="gateways/gateway-2"),
        metadata=admin(appliance),
    )
    assert evicted.state == gateway_service_pb2.Gateway.STATE_EVICTED
    beginning = asyncio.create_task(begin(configuration(appliance, tmp_path)))
    advice = "`appliance gateway create-join-token gateway-2 --out join.token`"
    await until(lambda: advice in caplog.text, 20.0)
    assert "gateways/gateway-2 was evicted" in caplog.text
    assert not beginning.done()
    await bring_token(appliance, tmp_path)
    async with asyncio.timeout(30):
        keeper, _ = await beginning
    assert row_of(appliance).state == "READY"
    await renew(appliance, keeper.identity)


@pytest.mark.attack
async def test_of_two_gateways_with_one_identity_both_are_shut_out(
    appliance: Appliance, tmp_path: Path
) -> None:
    await bring_token(appliance, tmp_path)
    config = configuration(appliance, tmp_path)
    keeper, _ = await begin(config)
    copied = dataclasses.replace(keeper.identity)
    await keeper.renew()
    ask = routing_service_pb2.GetServedTokenizerRequest(endpoint="projects/p/endpoints/e")
    await error_of(routing(appliance, keeper.identity).GetServedTokenizer(ask))
    error = await error_of(renew(appliance, copied))
    assert "two servers use the key of gateways/gateway-2" in error.message
    assert row_of(appliance).state == "EVICTED"
    assert isinstance(await error_of(renew(appliance, keeper.identity)), Unauthenticated)


@pytest.mark.attack
async def test_a_copy_gets_no_front_certificate_once_the_newest_is_in_use(
    appliance: Appliance, tmp_path: Path
) -> None:
    await bring_token(appliance, tmp_path)
    keeper, _ = await begin(configuration(appliance, tmp_path))
    copied = dataclasses.replace(keeper.identity)
    await keeper.renew()

    await renew_front(appliance, copied)
    await renew_front(appliance, keeper.identity)
    error = await error_of(renew_front(appliance, copied))
    assert (type(error), "replaced by a newer one" in error.message) == (Unauthenticated, True)
    assert row_of(appliance).state == "READY"


@pytest.mark.attack
async def test_no_front_certificate_is_made_for_one_that_is_evicted_after_the_door(
    appliance: Appliance, tmp_path: Path
) -> None:
    await bring_token(appliance, tmp_path)
    keeper, _ = await begin(configuration(appliance, tmp_path))
    caller = Caller(GATEWAY_2, credential=serial_of(keeper.identity.certificate_pem))
    request = routing_service_pb2.RenewFrontCertificateRequest(
        certificate_request=make_csr(new_private_key()).decode()
    )
    service = parts.gateways(appliance.control.base, appliance.control.work)
    assert service.renew_front(caller, request)
    with appliance.database.write() as transaction:
        transaction.run(tables.gateway.update().values(state="EVICTED"))
    with pytest.raises(Unauthenticated, match="was evicted"):
        service.renew_front(caller, request)


async def test_a_token_goes_before_an_identity_that_was_restored_from_a_backup(
    appliance: Appliance, tmp_path: Path
) -> None:
    await bring_token(appliance, tmp_path)
    config = configuration(appliance, tmp_path)
    keeper, _ = await begin(config)
    backup = (tmp_path / "state" / "identity.json").read_bytes()
    await keeper.renew()
    ask = routing_service_pb2.GetServedTokenizerRequest(endpoint="projects/p/endpoints/e")
    await error_of(routing(appliance, keeper.identity).GetServedTokenizer(ask))
    write_durably(tmp_path / "state" / "identity.json", backup)
    await bring_token(appliance, tmp_path)
    async with asyncio.timeout(30):
        again, _ = await begin(config)
    assert not (tmp_path / "join.token").exists()
    assert row_of(appliance).state == "READY"
    assert serial_of(again.identity.certificate_pem) == row_of(appliance).certificate_serial


@pytest.mark.attack
async def test_it_cannot_ask_for_other_names_nor_call_with_what_it_shows(
    appliance: Appliance, tmp_path: Path
) -> None:
    keeper, front = await begin(configuration(appliance, appliance.folder / "gateway"))
    key = load_pem_private_key(new_private_key(), None)
    wanted = x509.SubjectAlternativeName([x509.DNSName("intranet.example")])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(wanted, critical=False)
        .sign(key, hashes.SHA256())  # type: ignore[arg-type]  # an EC key
    )
    answer = await routing(appliance, keeper.identity).RenewFrontCertificate(
        routing_service_pb2.RenewFrontCertificateRequest(
            certificate_request=request.public_bytes(Encoding.PEM).decode()
        )
    )
    assert hosts_of(answer.certificate.encode()) == (["localhost"], ["127.0.0.1", "::1"])
    shown = dataclasses.replace(
        keeper.identity, key_pem=front.pair.key, certificate_pem=front.pair.certificate
    )
    # The handshake itself asks what a certificate is for.
    assert isinstance(await error_of(renew(appliance, shown)), Unavailable)


@pytest.mark.attack
@pytest.mark.parametrize(
    "host",
    [
        *("control.appliance", "*.example", "Caps.example", "a b", ""),
        # No address, though it looks like one; and addresses that no client can ask for.
        *("1.2.3.999", "12", "0.0.0.0", "::", "fe80::1%eth0"),  # to be refused
    ],
)
async def test_a_token_names_no_server_of_the_appliance(appliance: Appliance, host: str) -> None:
    request = gateway_service_pb2.CreateGatewayJoinTokenRequest(
        gateway_id="gateway-2", hosts=[host]
    )
    call = gateways(appliance).CreateGatewayJoinToken(request, metadata=admin(appliance))
    assert isinstance(await error_of(call), InvalidInput)


@pytest.mark.attack
async def test_a_token_for_a_gateway_makes_no_node(appliance: Appliance) -> None:
    token = await token_for(appliance, "gateway-2")
    stub = appliance.api(enrolment_service_pb2_grpc.EnrolmentServiceStub)
    request = enrolment_service_pb2.JoinRequest(
        token=token, certificate_request=make_csr(new_private_key()).decode()
    )
    assert isinstance(await error_of(stub.Join(request)), Unauthenticated)
    assert row_of(appliance) is None


async def test_a_directory_of_before_goes_on_and_renews_what_it_has(
    appliance: Appliance, tmp_path: Path
) -> None:
    """Two files for everything, as 0.1.0 made them, older than a day."""
    key, ring = new_private_key(), appliance.control.base.keyring
    gateway = Principal(PrincipalKind.GATEWAY, "gateway-1")
    old = ring.ca.issue(
        make_csr(key),
        gateway,
        server=True,
        client=True,
        dns=["localhost"],
        ips=["127.0.0.1"],
        lifetime=timedelta(days=397),
        now=datetime.now(UTC) - timedelta(days=100),
    )
    with appliance.database.write() as transaction:
        transaction.run(tables.gateway.update().values(certificate_serial=serial_of(old), hosts=[]))
    for name, data in (("key.pem", key), ("cert.pem", old)):
        write_durably(tmp_path / name, data)
    config = dataclasses.replace(
        configuration(appliance, tmp_path),
        key=tmp_path / "key.pem",
        certificate=tmp_path / "cert.pem",
    )
    keeper, front = await begin(config)
    assert keeper.identity.certificate_pem == front.pair.certificate == old
    running = Gateway(config, keeper, front)
    stop = asyncio.Event()
    task = asyncio.create_task(running.run(stop))
    try:
        await until(lambda: running.view.decides)
        await until(lambda: running.front.pair.certificate != old, 20.0)
        await until(lambda: row_of(appliance, "gateway-1").certificate_used, 20.0)
    finally:
        stop.set()
        await task
    held = json.loads((tmp_path / "state" / "identity.json").read_text())
    assert (
        serial_of(held["certificate"].encode()) == row_of(appliance, "gateway-1").certificate_serial
    )
    assert serial_of(held["certificate"].encode()) != serial_of(old)
    assert hosts_of(running.front.pair.certificate) == (["localhost"], ["127.0.0.1", "::1"])
    assert not_after(running.front.pair.certificate) - datetime.now(UTC) < timedelta(days=11)


def at_replicas(appliance: Appliance) -> set[str]:
    """Which serial numbers of the second gateway replicas take; all of the first are taken."""
    said = appliance.control.base.certificates.at_replicas()
    assert said.as_of.ToDatetime(UTC) == pytest.approx(appliance.clock(), abs=timedelta(seconds=5))
    return set(said.serials) - {row_of(appliance, "gateway-1").certificate_serial}


@pytest.mark.attack
async def test_replicas_take_what_counts_here_and_two_hours_what_counted_before(
    appliance: Appliance, tmp_path: Path
) -> None:
    await bring_token(appliance, tmp_path)
    keeper, _ = await begin(configuration(appliance, tmp_path))
    first = keeper.identity
    await keeper.renew()
    serials = [serial_of(each.certificate_pem) for each in (first, keeper.identity)]
    assert at_replicas(appliance) == set(serials)
    await renew_front(appliance, keeper.identity)
    # The control plane refuses the first in a minute; an open answer may take an hour.
    appliance.clock.forward(minutes=61)
    assert isinstance(await error_of(renew_front(appliance, first)), Unauthenticated)
    assert at_replicas(appliance) == set(serials)
    appliance.clock.forward(hours=1)
    assert at_replicas(appliance) == {serials[1]}
    assert row_of(appliance, "gateway-1").certificate_serial in set(
        appliance.control.base.certificates.at_replicas().serials
    )
    await gateways(appliance).EvictGateway(
        gateway_service_pb2.EvictGatewayRequest(name="gateways/gateway-2"),
        metadata=admin(appliance),
    )
    assert at_replicas(appliance) == set()


async def test_while_its_newest_was_never_used_replicas_take_the_one_before(
    appliance: Appliance, tmp_path: Path
) -> None:
    await bring_token(appliance, tmp_path)
    keeper, _ = await begin(configuration(appliance, tmp_path))
    first = serial_of(keeper.identity.certificate_pem)
    await renew(appliance, keeper.identity)  # and the answer was lost
    appliance.clock.forward(days=3)
    assert first in at_replicas(appliance)


async def test_a_gateway_at_work_is_not_deleted_and_one_that_is_stopped_is(
    appliance: Appliance, tmp_path: Path
) -> None:
    await bring_token(appliance, tmp_path, "llm.example")
    keeper, front = await begin(configuration(appliance, tmp_path))
    gateway = Gateway(configuration(appliance, tmp_path), keeper, front)
    get = gateway_service_pb2.GetGatewayRequest(name="gateways/gateway-2")
    delete = gateway_service_pb2.DeleteGatewayRequest(name="gateways/gateway-2")
    stub, metadata = gateways(appliance), admin(appliance)
    stop = asyncio.Event()
    running = asyncio.create_task(gateway.run(stop))
    try:
        await until(lambda: gateway.view.decides)
        shown = await stub.GetGateway(get, metadata=metadata)
        assert (shown.connected, list(shown.hosts)) == (True, ["llm.example"])
        error = await error_of(stub.DeleteGateway(delete, metadata=metadata))
        assert isinstance(error, FailedPrecondition)
        assert "`appliance gateway evict gateway-2`" in error.message
    finally:
        stop.set()
        await running
    await until(lambda: not appliance.control.work.connected_gateways.has("gateway-2"))
    await stub.DeleteGateway(delete, metadata=metadata)
    assert row_of(appliance) is None
    assert isinstance(await error_of(renew(appliance, keeper.identity)), Unauthenticated)
    assert isinstance(await error_of(stub.GetGateway(get, metadata=metadata)), NotFound)
    # The name is free, and means the new gateway only.
    await bring_token(appliance, tmp_path)
    (tmp_path / "state").rename(tmp_path / "old")
    again, _ = await begin(configuration(appliance, tmp_path))
    assert row_of(appliance).hosts == []
    assert await renew(appliance, again.identity)
    assert isinstance(await error_of(renew(appliance, keeper.identity)), Unauthenticated)


async def test_an_evicted_gateway_is_deleted(appliance: Appliance, tmp_path: Path) -> None:
    await joined_ago(appliance, tmp_path, 1)
    stub, metadata = gateways(appliance), admin(appliance)
    evict = gateway_service_pb2.EvictGatewayRequest(name="gateways/gateway-2")
    seen = await stub.EvictGateway(evict, metadata=metadata)
    delete = gateway_service_pb2.DeleteGatewayRequest(name="gateways/gateway-2", etag="older")
    assert isinstance(await error_of(stub.DeleteGateway(delete, metadata=metadata)), Conflict)
    delete.etag = seen.etag
    await stub.DeleteGateway(delete, metadata=metadata)
    assert row_of(appliance) is None
