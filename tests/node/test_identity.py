"""Who a node is: how it joins, renews, recovers and joins anew, against a control plane that only
speaks the protocol."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.core import process_tree
from appliance.core.errors import Exhausted, FailedPrecondition, Unauthenticated, Untrusted
from appliance.core.files import write_durably
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import Authority, make_csr, new_private_key
from appliance.crypto.reading import (
    renew_time,
    serial_of,
)
from appliance.machine import kinds
from appliance.machine.identity import Identity, IdentityStore
from appliance.machine.joining import Joining
from appliance.machine.keeping import Keeper
from tests.fakes.agent import Said, Start, first_processes, store, token_file
from tests.fakes.control_plane import CLUSTER, NODE, FakeControlPlane
from tests.fakes.disk import filled, small_disk
from tests.fakes.toy_kind import SLOW
from tests.fakes.toy_order import toy_order


async def test_joins_with_a_pinned_authority_and_keeps_its_key_to_itself(
    control: FakeControlPlane, tmp_path: Path
) -> None:
    identities = store(control, tmp_path)
    token = token_file(control, tmp_path)
    identity = await identities.join(token)
    assert (identity.machine.id, identity.cluster) == (NODE, CLUSTER)
    assert not token.exists()
    assert stat.S_IMODE(identities.path.stat().st_mode) == 0o600
    assert identities.load() == identity
    assert identity.key_pem.decode() not in repr(identity)
    middle = identity.renew_at - datetime.now(UTC)
    assert timedelta(hours=11) < middle < timedelta(hours=13)


async def test_a_clock_that_is_ahead_does_not_put_the_renewal_off(
    control: FakeControlPlane, tmp_path: Path
) -> None:
    identities = dataclasses.replace(
        store(control, tmp_path), now=lambda: datetime.now(UTC) + timedelta(days=365)
    )
    identity = await identities.join(token_file(control, tmp_path))
    assert identity.renew_at < datetime.now(UTC) + timedelta(hours=13)


@pytest.mark.attack
async def test_another_authority_than_announced_gets_no_token(
    control: FakeControlPlane, tmp_path: Path
) -> None:
    identities = store(control, tmp_path)
    for fingerprint in ("", "0" * 64):
        changed = dataclasses.replace(identities.control, ca_fingerprint=fingerprint)
        with pytest.raises(FailedPrecondition):
            await IdentityStore(kinds.NODE, tmp_path, changed).join(token_file(control, tmp_path))
    assert control.token


@pytest.mark.attack
@pytest.mark.parametrize("kind", [PrincipalKind.REPLICA, PrincipalKind.GATEWAY])
async def test_another_server_of_the_authority_is_no_control_plane(
    tmp_path: Path, kind: PrincipalKind
) -> None:
    plane = FakeControlPlane(tmp_path)
    honest = plane.shown
    plane.shown = Principal(kind, "a")
    async with plane:
        identities, token = store(plane, tmp_path), token_file(plane, tmp_path)
        with pytest.raises(Untrusted, match="of another kind or name than the one that is meant"):
            await identities.join(token)
        assert plane.token
        assert token.exists()
        plane.shown = honest
        true = await plane._serve(require_client=False)
        addresses = dataclasses.replace(identities.control, join=f"127.0.0.1:{true}")
        identity = await IdentityStore(kinds.NODE, tmp_path, addresses).join(token)
        with pytest.raises(Untrusted, match="of another kind or name than the one that is meant"):
            await identities.renew(identity)
    assert identities.load() == identity


@pytest.mark.attack
async def test_a_used_token_joins_nobody(control: FakeControlPlane, tmp_path: Path) -> None:
    identities = store(control, tmp_path)
    token = token_file(control, tmp_path)
    control.token = ""
    with pytest.raises(Unauthenticated):
        await identities.join(token)
    assert not identities.exists()


async def test_an_ended_certificate_is_said_with_its_end(
    control: FakeControlPlane, tmp_path: Path
) -> None:
    control.issued_ago = timedelta(days=3)
    identities = store(control, tmp_path)
    ended = await identities.join(token_file(control, tmp_path))
    assert identities.useless(ended).startswith(f"the certificate of nodes/{NODE} ended on 20")
    control.issued_ago = timedelta()
    control.token = "sla_join_next_secret_crc"
    assert identities.useless(await identities.join(token_file(control, tmp_path))) == ""


@pytest.mark.parametrize(
    ("issued_ago", "known", "why"),
    [
        (timedelta(days=3), True, "ended on"),
        (timedelta(days=-3), True, "made under a wrong clock"),
        (timedelta(), False, "is of another authority than"),
    ],
)
async def test_a_node_whose_certificate_is_useless_joins_with_the_token_it_gets(
    control: FakeControlPlane,
    start: Start,
    tmp_path: Path,
    issued_ago: timedelta,
    known: bool,  # noqa: FBT001 - a row of the table
    why: str,
) -> None:
    # A clock that was put back, or a data directory that was made anew beside an old node folder.
    key = new_private_key()
    certificate = (control.authority if known else Authority.create(CLUSTER)).issue(
        make_csr(key),
        Principal(PrincipalKind.NODE, NODE),
        server=False,
        client=True,
        lifetime=timedelta(days=1),
        now=datetime.now(UTC) - issued_ago,
    )
    ca_pem, renew_at = control.authority.certificate_pem, renew_time(certificate)
    old = Identity(Principal(PrincipalKind.NODE, NODE), CLUSTER, key, certificate, ca_pem, renew_at)
    write_durably(store(control, tmp_path).path, old.document())
    assert why in store(control, tmp_path).useless(old)
    agent = await start()
    session = await control.session()
    assert session.serial != serial_of(certificate)
    assert agent.identity == store(control, tmp_path).load()


async def test_a_node_whose_certificate_has_ended_proves_its_key(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    control.issued_ago = timedelta(days=3)
    identities = store(control, tmp_path)
    ended = await identities.join(token_file(control, tmp_path))
    control.issued_ago, control.recovers = timedelta(), True
    agent = await start()
    session = await control.session()
    assert session.serial != serial_of(ended.certificate_pem)
    assert agent.identity == identities.load()
    assert agent.identity.key_pem != ended.key_pem


async def test_a_proof_that_is_refused_is_said_with_what_to_do(
    control: FakeControlPlane, start: Start, tmp_path: Path, said: Said
) -> None:
    control.issued_ago = timedelta(days=3)
    identities = store(control, tmp_path)
    await identities.join(token_file(control, tmp_path))
    control.issued_ago = timedelta()
    await start()
    line = await said.until(f"and it is not replaced (nodes/{NODE} was evicted): where you are")
    assert f"`appliance node create-join-token {NODE} --out join.token`" in line
    # Somebody brings a token.
    control.token = "sla_join_next_secret_crc"
    token_file(control, tmp_path)
    await control.session()


@pytest.mark.parametrize("part", ["key_pem", "certificate_pem"])
async def test_an_identity_whose_parts_are_no_pair_is_said(
    control: FakeControlPlane, tmp_path: Path, part: str
) -> None:
    identities = store(control, tmp_path)
    good = await identities.join(token_file(control, tmp_path))
    for wrong in (b"none", b"", new_private_key()):
        bad = replace(good, **{part: wrong}).document()
        with pytest.raises(FailedPrecondition, match="of this node"):
            Identity.parse(bad, PrincipalKind.NODE)


async def test_an_identity_that_cannot_be_read_waits_for_a_token(
    control: FakeControlPlane, tmp_path: Path, said: Said
) -> None:
    identities, token = store(control, tmp_path), tmp_path / "join.token"
    identities.path.touch(0o600)
    identities.path.write_bytes(b"{}")
    beginning = asyncio.create_task(Joining(identities, token, look=0.05).begin())
    advice = await said.until("`appliance node create-join-token NODE --out join.token`")
    assert advice.startswith("the identity of this node cannot be read (KeyError): ")
    assert str(token) in advice
    token_file(control, tmp_path)
    async with asyncio.timeout(30):
        identity = await beginning
    assert identities.load() == identity
    assert not token.exists()


async def test_a_refused_token_is_said_and_another_one_is_taken(
    control: FakeControlPlane, tmp_path: Path, said: Said
) -> None:
    good, control.token = control.token, "sla_join_other_secret_crc"
    token = token_file(control, tmp_path)
    control.token = good
    beginning = asyncio.create_task(Joining(store(control, tmp_path), token, look=0.05).begin())
    await said.until(f"the join token in {token} is refused (this token cannot be used)")
    token_file(control, tmp_path)
    async with asyncio.timeout(30):
        assert (await beginning).machine.id == NODE


async def test_a_token_that_cannot_be_removed_is_said_and_the_node_joins(
    control: FakeControlPlane, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = token_file(control, tmp_path)

    def read_only(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(type(token), "unlink", read_only)
    identity = await Joining(store(control, tmp_path), token).begin()
    assert await said.until("is used, remove it: Read-only file system")
    assert store(control, tmp_path).load() == identity


async def test_a_node_that_is_refused_joins_anew_when_it_gets_a_token(
    control: FakeControlPlane,
    start: Start,
    tmp_path: Path,
    said: Said,
) -> None:
    agent = await start()
    first = await control.session()
    first.send(start_job=toy_order(control, tmp_path, SLOW))
    await first.until("job_progress", event="")
    (pid,) = first_processes()
    control.refuses = "nodes/gpu-1 was evicted"
    first.close()
    await said.until("was evicted")
    control.token = "sla_join_next_secret_crc"
    token_file(control, tmp_path)
    second = await control.session()
    assert second.serial != first.serial
    # What runs under a lease goes on meanwhile.
    assert [work.epoch for work in (await second.until("hello")).running] == [1]
    assert process_tree.session(pid) != []
    assert agent.identity == store(control, tmp_path).load()


async def test_renews_its_certificate_in_time_and_connects_with_the_new(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    # Certificates begin five minutes ago: the middle of this one is two seconds ahead.
    control.lifetime = timedelta(minutes=5, seconds=4)
    agent = await start()
    first = await control.session()
    before = agent.identity
    control.lifetime = timedelta(hours=1)
    second = await control.session()
    assert second.serial != first.serial
    assert agent.identity.key_pem != before.key_pem
    assert store(control, tmp_path).load() == agent.identity


async def test_a_token_is_not_used_up_while_an_identity_has_no_room(
    control: FakeControlPlane, tmp_path: Path
) -> None:
    token = token_file(control, tmp_path)
    with small_disk(tmp_path / "disk", 1) as disk:
        identities = store(control, disk)
        with filled(disk), pytest.raises(Exhausted):
            await identities.join(token)
        identity = await identities.join(token)
        assert identities.load() == identity
        assert [path.name for path in disk.iterdir()] == ["identity.json"]


async def test_who_is_refused_while_a_renewal_is_under_way_has_the_renewed_one(
    control: FakeControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof of a key that was replaced would look like that of a thief."""
    identities = store(control, tmp_path)
    joining = Joining(identities, token_file(control, tmp_path), look=0.05)
    keeper = Keeper(joining, await joining.begin())
    before, go, renew = keeper.identity, asyncio.Event(), identities.renew

    async def slow(identity: Identity) -> Identity:
        await go.wait()
        return await renew(identity)

    async def never(*_: object) -> None:
        raise AssertionError("asked for another one")

    monkeypatch.setattr(identities, "renew", slow)
    monkeypatch.setattr(joining, "try_again", never)
    renewing = asyncio.create_task(keeper.renew())
    await asyncio.sleep(0)
    refused = asyncio.create_task(keeper.try_again("it was replaced"))
    await asyncio.sleep(0)
    go.set()
    assert await asyncio.gather(renewing, refused) == [True, True]
    assert keeper.identity != before
