"""How a server becomes a node, stays one, and stops to be one."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.api.agent.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    enrolment_service_pb2,
    enrolment_service_pb2_grpc,
)
from appliance.api.nodes.v1 import node_pb2, node_service_pb2, node_service_pb2_grpc
from appliance.control.store import tables
from appliance.core.errors import FailedPrecondition, InvalidInput, NotFound, Unauthenticated
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto import possession
from appliance.crypto.certs import make_csr, new_private_key
from tests.fakes.appliance import ADMINISTRATOR, Appliance, Machine, bearer, error_of


def nodes(appliance: Appliance) -> Any:
    return appliance.api(node_service_pb2_grpc.NodeServiceStub)


async def join_token(appliance: Appliance, node: str) -> node_service_pb2.CreateJoinTokenResponse:
    return await nodes(appliance).CreateJoinToken(
        node_service_pb2.CreateJoinTokenRequest(node_id=node),
        metadata=bearer(appliance.session(ADMINISTRATOR)),
    )


def join(appliance: Appliance, token: str, csr: bytes) -> Any:
    return appliance.api(enrolment_service_pb2_grpc.EnrolmentServiceStub).Join(
        enrolment_service_pb2.JoinRequest(token=token, certificate_request=csr.decode())
    )


async def joined(appliance: Appliance, node: str) -> Machine:
    key = new_private_key()
    token = await join_token(appliance, node)
    answer = await join(appliance, token.token, make_csr(key))
    return Machine(key, answer.certificate.encode())


def agent(appliance: Appliance, machine: Machine) -> Any:
    return appliance.machines(agent_service_pb2_grpc.AgentServiceStub, machine)


async def renewed(appliance: Appliance, machine: Machine) -> Machine:
    key = new_private_key()
    answer = await agent(appliance, machine).RenewCertificate(
        agent_service_pb2.RenewCertificateRequest(certificate_request=make_csr(key).decode())
    )
    return Machine(key, answer.certificate.encode())


def renew(appliance: Appliance, machine: Machine) -> Any:
    return agent(appliance, machine).RenewCertificate(
        agent_service_pb2.RenewCertificateRequest(
            certificate_request=make_csr(new_private_key()).decode()
        )
    )


def state_of(appliance: Appliance, node: str) -> str:
    with appliance.database.read() as state:
        return state.value(
            tables.node.select()
            .with_only_columns(tables.node.c.state)
            .where(tables.node.c.id == node)
        )


async def test_the_token_of_init_lets_the_first_node_join(appliance: Appliance) -> None:
    appliance.clock.forward(hours=23)
    token = (appliance.folder / "node" / "join.token").read_text()
    key = new_private_key()
    answer = await join(appliance, token, make_csr(key))
    assert answer.node == "nodes/node-1"
    assert answer.ca_certificate.encode() == appliance.ca_pem
    assert answer.cluster_id == appliance.control.base.keyring.cluster_id
    (record,) = [
        record
        for record in appliance.records()
        if record["kind"] == "result" and record["method"].endswith("/Join")
    ]
    assert (record["principal"], record["outcome"]) == ("nodes/node-1", "OK")
    # Which token it was; never its text.
    assert record["details"]["token"] == token.split("_")[2]
    assert token not in str(appliance.records())


async def test_a_join_token_says_how_to_recognise_the_authority(appliance: Appliance) -> None:
    made = await join_token(appliance, "gpu-1")
    assert made.ca_fingerprint == appliance.control.base.keyring.ca.fingerprint()
    lifetime = made.expire_time.ToDatetime() - appliance.clock().replace(tzinfo=None)
    assert 590 < lifetime.total_seconds() <= 600


@pytest.mark.attack
async def test_of_many_who_join_with_one_token_one_wins(appliance: Appliance) -> None:
    token = (await join_token(appliance, "gpu-1")).token
    answers = await asyncio.gather(
        *(join(appliance, token, make_csr(new_private_key())) for _ in range(8)),
        return_exceptions=True,
    )
    kinds = Counter(type(answer).__name__ for answer in answers)
    assert kinds == {"JoinResponse": 1, "AioRpcError": 7}


@pytest.mark.attack
async def test_used_ended_and_unknown_tokens_look_the_same(appliance: Appliance) -> None:
    used = (await join_token(appliance, "gpu-1")).token
    await join(appliance, used, make_csr(new_private_key()))
    ended = (await join_token(appliance, "gpu-2")).token
    appliance.clock.forward(minutes=11)
    session = appliance.session(ADMINISTRATOR)
    errors = [
        await error_of(join(appliance, token, make_csr(new_private_key())))
        for token in (used, ended, session, "sla_join_00_00_00", "")
    ]
    assert {(type(error), error.message) for error in errors} == {
        (Unauthenticated, errors[0].message)
    }
    assert state_of(appliance, "gpu-2") is None


@pytest.mark.attack
async def test_the_server_chooses_what_stands_in_the_certificate(appliance: Appliance) -> None:
    """A request for somebody else's name, for servers, and for an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "administrator")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier("spiffe://x/gateway/gateway-1")]
            ),
            critical=False,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    token = (await join_token(appliance, "gpu-1")).token
    answer = await join(appliance, token, request)
    made = x509.load_pem_x509_certificate(answer.certificate.encode())
    cluster = appliance.control.base.keyring.cluster_id
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    purposes = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    constraints = made.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert [name.value for name in names] == [f"spiffe://{cluster}/node/gpu-1"]
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert constraints.ca is False
    lifetime = made.not_valid_after_utc - appliance.clock()
    assert 9.9 < lifetime.total_seconds() / 86_400 <= 10


async def test_a_bad_request_does_not_use_the_token_up(appliance: Appliance) -> None:
    token = (await join_token(appliance, "gpu-1")).token
    assert isinstance(await error_of(join(appliance, token, b"nonsense")), InvalidInput)
    await join(appliance, token, make_csr(new_private_key()))
    assert state_of(appliance, "gpu-1") == "LOST"


async def test_a_node_renews_and_goes_on(appliance: Appliance) -> None:
    machine = await joined(appliance, "gpu-1")
    for _ in range(3):
        machine = await renewed(appliance, machine)
    assert state_of(appliance, "gpu-1") == "LOST"


async def test_a_renewal_whose_answer_was_lost_may_be_repeated(appliance: Appliance) -> None:
    machine = await joined(appliance, "gpu-1")
    await renewed(appliance, machine)
    again = await renewed(appliance, machine)
    await renewed(appliance, again)
    assert state_of(appliance, "gpu-1") == "LOST"


@pytest.mark.attack
async def test_a_copied_key_is_noticed_when_both_renew(appliance: Appliance) -> None:
    machine = await joined(appliance, "gpu-1")
    copy = dataclasses.replace(machine)
    newer = await renewed(appliance, machine)
    newest = await renewed(appliance, newer)
    await error_of(renew(appliance, copy))
    # The copy is two behind: refused, and no harm done to the real one.
    assert state_of(appliance, "gpu-1") == "LOST"
    await agent(appliance, newest).ReleaseKeys(agent_service_pb2.ReleaseKeysRequest()).code()
    error = await error_of(renew(appliance, newer))
    assert isinstance(error, Unauthenticated)
    assert "two servers use the key of nodes/gpu-1" in error.message
    assert state_of(appliance, "gpu-1") == "EVICTED"
    assert isinstance(await error_of(renew(appliance, newest)), Unauthenticated)


@pytest.mark.attack
async def test_joining_again_shuts_the_certificate_before_out(appliance: Appliance) -> None:
    old = await joined(appliance, "gpu-1")
    new = await joined(appliance, "gpu-1")
    assert isinstance(await error_of(renew(appliance, old)), Unauthenticated)
    await renewed(appliance, new)


@pytest.mark.attack
async def test_a_certificate_that_ends_stops_to_work_on_a_live_connection(
    appliance: Appliance,
) -> None:
    """gRPC looks at it once per connection; the gate at every call."""
    machine = await joined(appliance, "gpu-1")
    await renew(appliance, machine)
    appliance.clock.forward(days=11)
    error = await error_of(renew(appliance, machine))
    assert isinstance(error, Unauthenticated)
    assert "not valid at this time" in error.message


@pytest.mark.attack
async def test_an_evicted_nodes_stream_ends_and_its_calls_are_refused(
    appliance: Appliance,
) -> None:
    machine = await joined(appliance, "gpu-1")
    held = asyncio.Event()

    async def reports() -> AsyncIterator[agent_service_pb2.ConnectRequest]:
        hello = agent_service_pb2.Hello(
            devices=1, device_kind="cpu", memory_bytes=1 << 30, address="127.0.0.1"
        )
        yield agent_service_pb2.ConnectRequest(hello=hello)
        await held.wait()

    stream = aiter(agent(appliance, machine).Connect(reports()))
    await anext(stream)
    metadata = bearer(appliance.session(ADMINISTRATOR))
    evicted = await nodes(appliance).EvictNode(
        node_service_pb2.EvictNodeRequest(name="nodes/gpu-1"), metadata=metadata
    )
    assert evicted.state == node_pb2.Node.STATE_EVICTED
    error = await asyncio.wait_for(error_of(stream), 5.0)
    held.set()
    assert isinstance(error, Unauthenticated)
    assert isinstance(await error_of(renew(appliance, machine)), Unauthenticated)
    listed = await nodes(appliance).ListNodes(
        node_service_pb2.ListNodesRequest(), metadata=metadata
    )
    assert [(node.name, node.state) for node in listed.nodes] == [
        ("nodes/gpu-1", node_pb2.Node.STATE_EVICTED)
    ]


@pytest.mark.attack
async def test_a_token_made_before_an_eviction_does_not_let_the_evicted_node_in(
    appliance: Appliance,
) -> None:
    """Whether somebody evicts it or its copied key does."""
    kept = (await join_token(appliance, "gpu-1")).token
    other = (await join_token(appliance, "gpu-2")).token
    await joined(appliance, "gpu-1")
    stub, admin = nodes(appliance), bearer(appliance.session(ADMINISTRATOR))
    evict = node_service_pb2.EvictNodeRequest(name="nodes/gpu-1")
    await stub.EvictNode(evict, metadata=admin)
    csr = make_csr(new_private_key())
    assert isinstance(await error_of(join(appliance, kept, csr)), Unauthenticated)
    assert (await join(appliance, other, csr)).node == "nodes/gpu-2"
    listed = await stub.ListJoinTokens(node_service_pb2.ListJoinTokensRequest(), metadata=admin)
    assert "nodes/gpu-1" not in {token.node for token in listed.join_tokens}
    machine = await joined(appliance, "gpu-1")
    again = (await join_token(appliance, "gpu-1")).token
    newest = await renewed(appliance, machine)
    await agent(appliance, newest).ReleaseKeys(agent_service_pb2.ReleaseKeysRequest()).code()
    assert isinstance(await error_of(renew(appliance, machine)), Unauthenticated)
    assert state_of(appliance, "gpu-1") == "EVICTED"
    assert isinstance(await error_of(join(appliance, again, csr)), Unauthenticated)


@pytest.mark.attack
@pytest.mark.parametrize("evicted", [False, True])
async def test_of_a_deleted_node_nothing_is_left_that_lets_it_or_its_name_in(
    appliance: Appliance, *, evicted: bool
) -> None:
    old = await joined(appliance, "gpu-1")
    kept = (await join_token(appliance, "gpu-1")).token
    stub, admin = nodes(appliance), bearer(appliance.session(ADMINISTRATOR))
    if evicted:
        evict = node_service_pb2.EvictNodeRequest(name="nodes/gpu-1")
        await stub.EvictNode(evict, metadata=admin)
    delete = node_service_pb2.DeleteNodeRequest(name="nodes/gpu-1")
    await stub.DeleteNode(delete, metadata=admin)
    csr = make_csr(new_private_key())
    for refused in (
        renew(appliance, old),
        recover(appliance, old, await challenge(appliance)),
        join(appliance, kept, csr),
    ):
        assert isinstance(await error_of(refused), (Unauthenticated, FailedPrecondition))
    assert not appliance.control.base.policies.current().allowed(
        Principal(PrincipalKind.NODE, "gpu-1"), "platform", "agent.connect"
    )
    # The name is free, and means the new node only.
    new = await joined(appliance, "gpu-1")
    assert isinstance(await error_of(renew(appliance, old)), Unauthenticated)
    assert state_of(appliance, "gpu-1") == "LOST"
    assert await renewed(appliance, new)
    assert appliance.control.base.policies.cross_check()


async def test_an_evicted_node_comes_back_with_a_new_join_token(appliance: Appliance) -> None:
    await joined(appliance, "gpu-1")
    stub, admin = nodes(appliance), bearer(appliance.session(ADMINISTRATOR))
    cordon = node_service_pb2.CordonNodeRequest(name="nodes/gpu-1", reason="looks odd")
    await stub.CordonNode(cordon, metadata=admin)
    evict = node_service_pb2.EvictNodeRequest(name="nodes/gpu-1")
    await stub.EvictNode(evict, metadata=admin)
    assert await renewed(appliance, await joined(appliance, "gpu-1"))
    get = node_service_pb2.GetNodeRequest(name="nodes/gpu-1")
    node = await stub.GetNode(get, metadata=admin)
    # It is the same node: what somebody has decided about it stands.
    assert (node.state, node.cordoned) == (node_pb2.Node.STATE_LOST, True)


async def test_who_evicts_a_machine_that_has_not_joined_is_told_how_to_end_its_token(
    appliance: Appliance,
) -> None:
    made = await join_token(appliance, "gpu-1")
    stub, admin = nodes(appliance), bearer(appliance.session(ADMINISTRATOR))
    evict = node_service_pb2.EvictNodeRequest(name="nodes/gpu-1")
    error = await error_of(stub.EvictNode(evict, metadata=admin))
    assert isinstance(error, FailedPrecondition)
    assert f"`appliance node revoke-join-token {made.token_id}`" in error.message
    revoke = node_service_pb2.RevokeJoinTokenRequest(token_id=made.token_id)
    await stub.RevokeJoinToken(revoke, metadata=admin)
    assert isinstance(await error_of(stub.EvictNode(evict, metadata=admin)), NotFound)


@pytest.mark.attack
async def test_a_revoked_token_looks_like_one_that_never_was(appliance: Appliance) -> None:
    made = await join_token(appliance, "gpu-1")
    await nodes(appliance).RevokeJoinToken(
        node_service_pb2.RevokeJoinTokenRequest(token_id=made.token_id),
        metadata=bearer(appliance.session(ADMINISTRATOR)),
    )
    csr = make_csr(new_private_key())
    said = [(await error_of(join(appliance, text, csr))).message for text in (made.token, "sla")]
    assert said[0] == said[1]


def enrolment(appliance: Appliance) -> Any:
    return appliance.api(enrolment_service_pb2_grpc.EnrolmentServiceStub)


async def challenge(appliance: Appliance) -> bytes:
    request = enrolment_service_pb2.GetChallengeRequest()
    return bytes((await enrolment(appliance).GetChallenge(request)).challenge)


def recover(
    appliance: Appliance, machine: Machine, asked: bytes, *, key: bytes = b"", by: bytes = b""
) -> Any:
    """Ask for the next certificate of a machine; signed `by` its key, unless said otherwise."""
    request = make_csr(key or new_private_key())
    cluster = appliance.control.base.keyring.cluster_id
    return enrolment(appliance).RecoverCertificate(
        enrolment_service_pb2.RecoverCertificateRequest(
            certificate=machine.certificate.decode(),
            challenge=asked,
            certificate_request=request.decode(),
            signature=possession.prove(
                by or machine.key, machine.certificate, cluster, asked, request
            ),
        )
    )


async def recovered(appliance: Appliance, machine: Machine) -> Machine:
    key = new_private_key()
    answer = await recover(appliance, machine, await challenge(appliance), key=key)
    return Machine(key, answer.certificate.encode())


async def joined_ago(appliance: Appliance, node: str, days: int) -> Machine:
    """A machine that joined so many days ago; certificates are checked by the real clock, too."""
    appliance.clock.forward(days=-days)
    machine = await joined(appliance, node)
    appliance.clock.forward(days=days)
    return machine


@pytest.mark.parametrize("days", [11, 99])
async def test_a_certificate_that_has_ended_is_replaced_by_its_key(
    appliance: Appliance, days: int
) -> None:
    machine = await joined_ago(appliance, "gpu-1", days)
    again = await recovered(appliance, machine)
    again = await renewed(appliance, again)
    await renewed(appliance, again)
    records = [
        record
        for record in appliance.records()
        if record["kind"] == "result" and record["method"].endswith("/RecoverCertificate")
    ]
    assert [(record["principal"], record["outcome"]) for record in records] == [
        ("nodes/gpu-1", "OK")
    ]


@pytest.mark.attack
async def test_without_its_key_a_certificate_is_not_replaced(appliance: Appliance) -> None:
    machine = await joined_ago(appliance, "gpu-1", 11)
    asked = await challenge(appliance)
    error = await error_of(recover(appliance, machine, asked, by=new_private_key()))
    assert (type(error), "not signed with the key" in error.message) == (Unauthenticated, True)
    for wrong in (b"", b"0" * 56, asked[:-1], asked[1:] + asked[:1]):
        error = await error_of(recover(appliance, machine, wrong))
        assert (type(error), "challenge is not one" in error.message) == (Unauthenticated, True)
    # One that is kept for later.
    appliance.clock.forward(minutes=3)
    error = await error_of(recover(appliance, machine, asked))
    assert (type(error), "challenge has ended" in error.message) == (Unauthenticated, True)
    assert await recovered(appliance, machine)


@pytest.mark.attack
async def test_who_was_evicted_or_replaced_does_not_come_back_by_a_key(
    appliance: Appliance,
) -> None:
    evicted = await joined_ago(appliance, "gpu-1", 11)
    replaced = await joined_ago(appliance, "gpu-2", 11)
    await nodes(appliance).EvictNode(
        node_service_pb2.EvictNodeRequest(name="nodes/gpu-1"),
        metadata=bearer(appliance.session(ADMINISTRATOR)),
    )
    await joined(appliance, "gpu-2")
    old = await joined_ago(appliance, "gpu-3", 101)
    for machine, why in (
        (evicted, "was evicted"),
        (replaced, "was replaced by a newer one"),
        (old, "ended more than 90 days ago"),
        (appliance.certificate(PrincipalKind.REPLICA, "r1"), "is not one of a node"),
        (Machine(new_private_key(), b"no certificate"), "not a certificate"),
    ):
        error = await error_of(recover(appliance, machine, await challenge(appliance)))
        assert (type(error), why in error.message) == (Unauthenticated, True), error.message
    assert state_of(appliance, "gpu-1") == "EVICTED"


@pytest.mark.attack
async def test_a_copy_that_recovers_after_the_node_did_evicts_it(appliance: Appliance) -> None:
    copied = await joined_ago(appliance, "gpu-1", 11)
    real = await recovered(appliance, copied)
    await error_of(agent(appliance, real).ReleaseKeys(agent_service_pb2.ReleaseKeysRequest()))
    error = await error_of(recover(appliance, copied, await challenge(appliance)))
    assert "two servers use the key of nodes/gpu-1" in error.message
    assert state_of(appliance, "gpu-1") == "EVICTED"


def release(appliance: Appliance, machine: Machine) -> Any:
    """Any call of a machine; nothing is there to release, so one that may call hears that."""
    return error_of(agent(appliance, machine).ReleaseKeys(agent_service_pb2.ReleaseKeysRequest()))


@pytest.mark.attack
async def test_a_copied_certificate_stops_a_minute_after_its_successor_is_in_use(
    appliance: Appliance, caplog: pytest.LogCaptureFixture
) -> None:
    copied = await joined(appliance, "gpu-1")
    real = await renewed(appliance, copied)
    # Its successor was not used: the answer may have been lost, however long ago.
    appliance.clock.forward(minutes=10)
    assert not isinstance(await release(appliance, copied), Unauthenticated)
    assert not isinstance(await release(appliance, real), Unauthenticated)
    appliance.clock.forward(seconds=59)
    assert not isinstance(await release(appliance, copied), Unauthenticated)
    assert "is in use" not in caplog.text
    appliance.clock.forward(seconds=2)
    for seconds, alarms in ((1, 1), (60, 1), (0, 2)):
        error = await release(appliance, copied)
        assert (type(error), "replaced by a newer one" in error.message) == (Unauthenticated, True)
        said = "a certificate of nodes/gpu-1 whose successor is in use is shown with its key"
        assert caplog.text.count(said) == alarms
        appliance.clock.forward(seconds=seconds)
    # Nor does it harm the real one.
    assert isinstance(await error_of(renew(appliance, copied)), Unauthenticated)
    await renewed(appliance, real)
    assert state_of(appliance, "gpu-1") == "LOST"


@pytest.mark.attack
async def test_a_copy_is_refused_at_once_when_the_newest_was_used_before_a_restart(
    appliance: Appliance,
) -> None:
    copied = await joined(appliance, "gpu-1")
    real = await renewed(appliance, copied)
    await release(appliance, real)
    appliance.control.base.certificates._first_used.clear()
    assert isinstance(await release(appliance, copied), Unauthenticated)
    assert not isinstance(await release(appliance, real), Unauthenticated)


@pytest.mark.attack
async def test_an_open_stream_of_a_copy_ends_with_the_minute(appliance: Appliance) -> None:
    copied = await joined(appliance, "gpu-1")
    held = asyncio.Event()

    async def reports() -> AsyncIterator[agent_service_pb2.ConnectRequest]:
        hello = agent_service_pb2.Hello(
            devices=1, device_kind="cpu", memory_bytes=1 << 30, address="127.0.0.1"
        )
        yield agent_service_pb2.ConnectRequest(hello=hello)
        await held.wait()

    stream = aiter(agent(appliance, copied).Connect(reports()))
    await anext(stream)
    await release(appliance, await renewed(appliance, copied))
    appliance.clock.forward(seconds=61)
    error = await asyncio.wait_for(error_of(stream), 5.0)
    held.set()
    assert (type(error), "replaced by a newer one" in error.message) == (Unauthenticated, True)


@pytest.mark.attack
async def test_what_strangers_send_for_recovery_is_counted_and_not_kept(
    appliance: Appliance,
) -> None:
    """No certificate, one of a worker, a good one with another's signature; and challenges."""
    machine = await joined_ago(appliance, "gpu-1", 11)
    before, wrong = len(appliance.records()), new_private_key()
    shown = (machine, appliance.certificate(PrincipalKind.REPLICA, "r1"), Machine(wrong, b"none"))
    for each in shown:
        error = await error_of(recover(appliance, each, await challenge(appliance), by=wrong))
        assert isinstance(error, Unauthenticated)
    await appliance.control.record_refusals()
    (record,) = appliance.records()[before:]
    method = "/appliance.api.agent.v1.EnrolmentService/RecoverCertificate"
    assert (record["kind"], record["principal"]) == ("denied", "")
    assert record["details"] == {
        "count": 3,
        "reasons": {"UNAUTHENTICATED": 3},
        "methods": {method: 3},
    }


async def test_an_evicted_machine_that_tries_again_is_no_alarm(
    appliance: Appliance, caplog: pytest.LogCaptureFixture
) -> None:
    evicted = await joined_ago(appliance, "gpu-1", 11)
    await nodes(appliance).EvictNode(
        node_service_pb2.EvictNodeRequest(name="nodes/gpu-1"),
        metadata=bearer(appliance.session(ADMINISTRATOR)),
    )
    await error_of(recover(appliance, evicted, await challenge(appliance)))
    assert "is shown with its key" not in caplog.text
    replaced = await joined_ago(appliance, "gpu-2", 11)
    await joined(appliance, "gpu-2")
    await error_of(recover(appliance, replaced, await challenge(appliance)))
    assert "an old certificate of nodes/gpu-2 is shown with its key" in caplog.text


@pytest.mark.attack
async def test_that_a_certificate_was_used_is_known_after_a_restart(appliance: Appliance) -> None:
    copied = await joined_ago(appliance, "gpu-1", 11)
    real = await recovered(appliance, copied)
    await error_of(agent(appliance, real).ReleaseKeys(agent_service_pb2.ReleaseKeysRequest()))
    # What a process remembers is gone with it; the row is not.
    with appliance.database.read() as state:
        assert state.first(tables.node.select()).certificate_used is True
    error = await error_of(recover(appliance, copied, await challenge(appliance)))
    assert "two servers use the key of nodes/gpu-1" in error.message


async def test_a_clock_that_was_ahead_for_a_moment_costs_nobody_a_token(
    appliance: Appliance,
) -> None:
    machine = await joined_ago(appliance, "gpu-1", 11)
    appliance.clock.forward(days=30)
    ahead = await recovered(appliance, machine)
    # Now it is right again, and the certificate begins in thirty days.
    appliance.clock.forward(days=-30)
    again = await recovered(appliance, ahead)
    await renewed(appliance, again)


async def test_a_certificate_that_holds_is_not_replaced_without_a_handshake(
    appliance: Appliance,
) -> None:
    machine = await joined(appliance, "gpu-1")
    error = await error_of(recover(appliance, machine, await challenge(appliance)))
    assert isinstance(error, FailedPrecondition)
    assert "look at the clock of its server" in error.message
    await renewed(appliance, machine)


@pytest.mark.attack
async def test_a_signature_for_another_request_or_appliance_proves_nothing(
    appliance: Appliance,
) -> None:
    machine = await joined_ago(appliance, "gpu-1", 11)
    asked, mine = await challenge(appliance), make_csr(new_private_key())
    cluster, theirs = appliance.control.base.keyring.cluster_id, make_csr(new_private_key())
    for signed in (
        (machine.certificate, cluster, asked, theirs),
        (machine.certificate, "another", asked, mine),
        # Where the challenge ends and the request begins is part of what is signed.
        (machine.certificate, cluster, asked + mine[:1], mine[1:]),
    ):
        call = enrolment(appliance).RecoverCertificate(
            enrolment_service_pb2.RecoverCertificateRequest(
                certificate=machine.certificate.decode(),
                challenge=asked,
                certificate_request=mine.decode(),
                signature=possession.prove(machine.key, *signed),
            )
        )
        error = await error_of(call)
        assert (type(error), "not signed" in error.message) == (Unauthenticated, True)
