"""An agent, a control plane that only speaks the protocol, and real work processes."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import errno
import logging
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.api.nodes.v1 import node_pb2
from appliance.core.errors import FailedPrecondition, Unauthenticated, Untrusted
from appliance.core.files import write_durably
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import Authority, make_csr, new_private_key
from appliance.crypto.reading import (
    renew_time,
    serial_of,
)
from appliance.machine import kinds
from appliance.machine.control_plane import Control
from appliance.machine.identity import Identity, IdentityStore
from appliance.machine.joining import Joining
from appliance.node.agent import Agent, Rhythm
from appliance.node.documents import Place
from appliance.node.launcher import Folders, Launcher
from appliance.node.logs import LAST_BYTES
from appliance.node.metrics import NodeMetrics
from appliance.node.works import Commands
from tests.fakes.control_plane import CLUSTER, NODE, FakeControlPlane, Session
from tests.fakes.gang import ROOT, session_members
from tests.fakes.toy_kind import FULL, QUIET, SLEEP, SLOW, STEPS, TEXT
from tests.fakes.toy_order import toy_order

COMMANDS = Commands(
    job=(sys.executable, "-m", "tests.fakes.leader"),
    replica=(sys.executable, "-m", "tests.fakes.toy_replica"),
)
FAST = Rhythm(heartbeat=0.1, report=0.05, silence=5, first_backoff=0.05)

Start = Callable[[], Awaitable[Agent]]


class Said(logging.Handler):
    """What the agent's log says, as it says it."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.put_nowait(record.getMessage())

    async def until(self, part: str) -> str:
        """The next line with `part` in it."""
        async with asyncio.timeout(30):
            while part not in (line := await self._lines.get()):
                pass
        return line


@pytest.fixture
def said() -> Iterator[Said]:
    handler, logger = Said(), logging.getLogger("appliance")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[FakeControlPlane]:
    async with FakeControlPlane(tmp_path) as plane:
        yield plane


def store(control: FakeControlPlane, folder: Path) -> IdentityStore:
    addresses = Control(
        join=f"127.0.0.1:{control.join_port}",
        machines=f"127.0.0.1:{control.machine_port}",
        ca=control.ca_file,
        ca_fingerprint=control.authority.fingerprint(),
    )
    return IdentityStore(kinds.NODE, folder, addresses)


def token_file(control: FakeControlPlane, folder: Path) -> Path:
    path = folder / "join.token"
    path.touch(0o600)
    path.write_text(f"{control.token}\n")
    return path


@pytest.fixture
async def start(control: FakeControlPlane, tmp_path: Path) -> AsyncIterator[Start]:
    running: list[asyncio.Task[None]] = []

    async def begin() -> Agent:
        joining = Joining(store(control, tmp_path), token_file(control, tmp_path), look=0.05)
        launcher = Launcher(
            Folders(tmp_path / "runs", tmp_path / "scratch"),
            {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            log_bytes=1 << 20,
        )
        agent = Agent(
            joining,
            await joining.begin(),
            rpc.Hello(devices=2, device_kind="cpu", address="127.0.0.1"),
            Place(f"file://{tmp_path}/objects", "127.0.0.1", "cpu"),
            launcher,
            COMMANDS,
            metrics=NodeMetrics(CollectorRegistry()),
            rhythm=FAST,
        )
        running.append(asyncio.create_task(agent.run()))
        return agent

    yield begin
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


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
    pid = next(iter(agent.works._entries.values())).running.pid
    control.refuses = "nodes/gpu-1 was evicted"
    first.close()
    await said.until("was evicted")
    control.token = "sla_join_next_secret_crc"
    token_file(control, tmp_path)
    second = await control.session()
    assert second.serial != first.serial
    # What runs under a lease goes on meanwhile.
    assert [work.epoch for work in (await second.until("hello")).running] == [1]
    assert session_members(pid) != []
    assert agent.identity == store(control, tmp_path).load()


async def test_a_job_runs_to_its_end(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    await start()
    session = await control.session()
    hello = await session.until("hello")
    assert (hello.devices, hello.device_kind, list(hello.running)) == (2, "cpu", [])
    session.send(start_job=toy_order(control, tmp_path, QUIET))
    ended = await session.until("job_ended")
    assert (ended.succeeded, ended.reason, ended.message) == (True, "", "")
    assert [(output.slot, output.facts) for output in ended.outputs] == [
        ("dataset", '{"total": 108}')
    ]
    assert len(ended.outputs[0].manifest_digest) == 64
    assert dict(ended.result.values) == {"total": 108}
    assert dict(ended.result.dropped) == {"short": 2}
    progress = session.of("job_progress")
    assert [p.progress.step for p in progress if not p.event] == list(range(1, STEPS + 1))
    assert [p.event for p in progress if p.event] == ["started"]
    assert [c.step for c in session.of("checkpoint")] == [2, 4, 6, 8]
    log = tmp_path / "runs" / f"{'0a' * 16}.1" / "log"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert list((tmp_path / "scratch").iterdir()) == []


def shown_of(pid: int) -> tuple[bytes, bytes]:
    """Environment and arguments of a process."""
    folder = Path(f"/proc/{pid}")
    return (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()


@pytest.mark.attack
async def test_no_key_is_in_any_process_of_the_work(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    agent = await start()
    session = await control.session()
    session.send(start_job=toy_order(control, tmp_path, SLOW))
    await session.until("job_progress", event="")
    (entry,) = agent.works._entries.values()
    family = session_members(entry.running.pid)
    assert len(family) == 3
    keys = [key.key for key in control.keys["0a" * 16].outputs]
    secrets = [*keys, *map(base64.b64encode, keys), *(key.hex().encode() for key in keys)]
    secrets.append(agent.identity.key_pem.splitlines()[1])
    for pid in family:
        environment, arguments = shown_of(pid)
        shown = environment + arguments
        assert not [secret for secret in secrets if secret in shown]
        assert b"PYTEST" not in environment


async def test_a_stopped_job_ends_and_nothing_is_left(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    agent = await start()
    session = await control.session()
    started = toy_order(control, tmp_path, SLOW)
    session.send(start_job=started)
    await session.until("job_progress", event="")
    pid = next(iter(agent.works._entries.values())).running.pid
    session.send(stop=rpc.StopWork(work=started.work, grace_seconds=20))
    ended = await session.until("job_ended")
    assert (ended.succeeded, ended.reason) == (False, "LEASE_LOST")
    assert session_members(pid) == []


async def until_saved(session: Session) -> tuple[int, rpc.JobEnded]:
    """The step of the newest checkpoint of a job when it has ended, and its end."""
    ended = await session.until("job_ended")
    return session.of("checkpoint")[-1].step, ended


@pytest.mark.parametrize("when", ["at once", "while it works"])
async def test_a_job_that_is_to_save_saves_once_and_ends(
    control: FakeControlPlane, start: Start, tmp_path: Path, when: str
) -> None:
    agent = await start()
    session = await control.session()
    started = toy_order(control, tmp_path, SLOW)
    session.send(start_job=started)
    if when == "while it works":
        await session.until("job_progress", event="")
    else:
        # Its first process is there, and does not know of any signal yet.
        while not any(entry.running for entry in agent.works._entries.values()):
            await session.beats(1)
    (entry,) = agent.works._entries.values()
    for _ in range(3):
        session.send(stop=rpc.StopWork(work=started.work, grace_seconds=60, save=True))
    step, ended = await until_saved(session)
    assert (ended.succeeded, ended.reason) == (False, "PAUSED")
    assert ended.message == f"saved the checkpoint of step {step}"
    assert step < STEPS
    assert not ended.outputs
    assert session_members(entry.running.pid) == []
    samples = [each for metric in agent._metrics.ended.collect() for each in metric.samples]
    outcomes = {each.labels["outcome"] for each in samples if each.name.endswith("_total")}
    assert outcomes == {"paused"}


@pytest.mark.parametrize("reader", ["_read_heard", "_read_all"])
async def test_a_read_that_grpc_cancels_ends_a_stream_and_not_the_agent(
    control: FakeControlPlane,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reader: str,
) -> None:
    read, cancelled = getattr(Agent, reader), []

    async def cancels(agent: Agent, call: object) -> None:
        if not cancelled:
            cancelled.append(call)
            raise asyncio.CancelledError
        await read(agent, call)

    monkeypatch.setattr(Agent, reader, cancels)
    await start()
    session = await control.session()
    if reader == "_read_all":
        session = await control.session()
    session.send(start_job=toy_order(control, tmp_path, QUIET))
    assert (await session.until("job_ended")).succeeded


async def asleep(folder: Path) -> None:
    """Wait until a rank sleeps in its step, and looks at nothing."""
    await until(lambda: any((folder / "scratch").rglob("done")))


async def test_a_job_that_does_not_save_in_time_is_ended_all_the_same(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    agent = await start()
    session = await control.session()
    started = toy_order(control, tmp_path, SLEEP)
    session.send(start_job=started)
    await session.until("job_progress", event="")
    (entry,) = agent.works._entries.values()
    await asleep(tmp_path)
    session.send(stop=rpc.StopWork(work=started.work, grace_seconds=1, save=True))
    # The order is repeated with what is left of the time; the first one counts.
    session.send(stop=rpc.StopWork(work=started.work, grace_seconds=3000, save=True))
    ended = await session.until("job_ended")
    assert (ended.succeeded, ended.reason) == (False, "LEASE_LOST")
    assert ended.message == "none was saved within 1 s"
    assert session_members(entry.running.pid) == []


async def test_a_job_that_saves_can_still_be_stopped(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    await start()
    session = await control.session()
    started = toy_order(control, tmp_path, SLEEP)
    session.send(start_job=started)
    await asleep(tmp_path)
    session.send(stop=rpc.StopWork(work=started.work, grace_seconds=3000, save=True))
    session.send(stop=rpc.StopWork(work=started.work, grace_seconds=0))
    ended = await session.until("job_ended")
    assert (ended.reason, ended.message) == (
        "LEASE_LOST",
        "the node was told to stop this work",
    )


async def test_a_job_that_has_not_begun_has_nothing_to_save(
    control: FakeControlPlane, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await start()
    session = await control.session()

    async def never(_: object) -> rpc.ReleaseKeysResponse:
        return await asyncio.Future()

    monkeypatch.setattr(agent.works, "release", never)
    order = toy_order(control, tmp_path, QUIET)
    session.send(start_job=order)
    await session.beats(2)
    session.send(stop=rpc.StopWork(work=order.work, grace_seconds=300, save=True))
    ended = await session.until("job_ended")
    assert (ended.reason, ended.message) == ("LEASE_LOST", "it had not begun")


@pytest.mark.attack
async def test_the_last_output_of_a_failed_job_is_said_until_it_was_taken_and_shows_no_key(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    control.answering = False
    await start()
    session = await control.session()
    session.send(start_job=toy_order(control, tmp_path, FULL))
    ended = await session.until("job_ended")
    assert (ended.succeeded, ended.reason) == (False, "RESOURCE_EXHAUSTED")
    assert "rank 1 crashed" in ended.log
    assert TEXT in ended.log
    assert TEXT not in ended.message
    assert len(ended.log.encode()) <= LAST_BYTES
    # The rank wrote a key of its orders in four ways, one of them within a line of JSON.
    assert ended.log.count("[redacted]") == 4
    keys = [key.key for key in control.keys["0a" * 16].outputs]
    written = ended.log.replace("\\\\", "\\")
    for key in keys:
        for form in (repr(key)[2:-1], key.hex(), base64.b64encode(key).decode()):
            assert form not in written
    session.close()
    again = await (await control.session()).until("job_ended")
    assert again == ended


async def test_nothing_ends_because_nobody_answers(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    agent = await start()
    session = await control.session()
    started = toy_order(control, tmp_path, SLOW)
    control.leases.clear()
    session.send(start_job=started)
    await session.until("job_progress", event="")
    # The control plane names no work any more, then is gone; an hour would be the same.
    await session.beats(5)
    session.close()
    again = await control.session()
    (entry,) = agent.works._entries.values()
    assert len(session_members(entry.running.pid)) == 3
    again.send(stop=rpc.StopWork(work=started.work, grace_seconds=0))
    ended = await again.until("job_ended")
    assert (ended.succeeded, ended.reason) == (False, "LEASE_LOST")
    assert session_members(entry.running.pid) == []


async def test_work_goes_on_while_the_control_plane_is_away(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    await start()
    control.answering = False
    first = await control.session()
    order = toy_order(control, tmp_path, SLOW)
    first.send(start_job=order)
    await first.until("job_progress", event="")
    first.close()
    second = await control.session()
    hello = await second.until("hello")
    assert [(work.work, work.epoch) for work in hello.running] == [("0a" * 16, 1)]
    ended = await second.until("job_ended")
    assert ended.succeeded
    # Said again, because nobody has answered it; the work counts as held until then.
    second.close()
    third = await control.session()
    assert [work.epoch for work in (await third.until("hello")).running] == [1]
    control.answering = True
    assert (await third.until("job_ended")).succeeded
    await third.beats(5)
    assert not third.of("heartbeat")[-1].running
    third.close()
    fourth = await control.session()
    await fourth.beats(3)
    assert fourth.of("job_ended") == []
    # An order that comes late starts nothing again.
    fourth.send(start_job=order)
    await fourth.beats(3)
    assert len(control.asked) == 1


@pytest.mark.parametrize("heard", [False, True])
async def test_what_a_stream_took_along_is_said_again_and_what_was_heard_is_not(
    control: FakeControlPlane, start: Start, tmp_path: Path, *, heard: bool
) -> None:
    await start()
    first = await control.session()
    order = toy_order(control, tmp_path, SLOW)
    control.answering = heard
    first.send(start_job=order)
    await first.until("job_progress", event="")
    if heard:
        await first.beats(3)
    before = [each.progress.step for each in first.of("job_progress") if not each.event]
    first.close()
    second = await control.session()
    control.answering = True
    await second.until("job_ended")
    after = [each.progress.step for each in second.of("job_progress") if not each.event]
    assert sorted(set(before + after)) == list(range(1, STEPS + 1))
    assert after == sorted(after)
    assert (1 in after) is not heard


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another task does, half a minute at most."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.05)


async def test_heartbeats_and_orders_wait_for_no_report(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    agent = await start()
    session = await control.session()
    control.taking.clear()
    order = toy_order(control, tmp_path, QUIET)
    session.send(start_job=order)
    await until(lambda: bool(agent.works.outbox.unheard()))
    # It has ended, and nobody has taken that in: the node does not say that it runs nothing.
    await session.beats(5)
    assert list(session.of("heartbeat")[-1].running) == [order.work]
    session.send(start_replica=serve(control))
    await until(lambda: len(control.asked) == 2)
    control.taking.set()
    assert (await session.until("job_ended")).succeeded
    assert (await session.until("replica_changed")).ready
    await session.beats(3)
    assert [work.work for work in session.of("heartbeat")[-1].running] == ["0b" * 16 + "/0"]


async def test_a_stream_of_reports_that_breaks_is_opened_again_beside_the_other(
    control: FakeControlPlane, start: Start, tmp_path: Path, said: Said
) -> None:
    await start()
    session = await control.session()
    control.breaks = True
    session.send(start_job=toy_order(control, tmp_path, QUIET))
    # Not always why: gRPC puts the failure of the next message in the place of the status.
    await said.until("reports do not reach the control plane")
    await session.beats(3)
    control.breaks = False
    assert (await session.until("job_ended")).succeeded
    steps = [p.progress.step for p in session.of("job_progress") if not p.event]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    assert control.sessions.empty()


async def test_an_order_of_an_older_epoch_is_ignored_and_a_newer_one_replaces(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    agent = await start()
    session = await control.session()
    session.send(start_job=toy_order(control, tmp_path / "a", SLOW, epoch=2))
    await session.until("job_progress", event="")
    pid = next(iter(agent.works._entries.values())).running.pid
    session.send(start_job=toy_order(control, tmp_path / "b", SLOW, epoch=1))
    session.send(start_job=toy_order(control, tmp_path / "c", QUIET, epoch=3))
    ended = await session.until("job_ended")
    assert ended.work.epoch == 3
    assert session_members(pid) == []
    assert [asked.work.epoch for asked in control.asked] == [2, 3]


async def test_a_process_that_cannot_be_ended_delays_what_needs_its_place_and_nothing_else(
    control: FakeControlPlane, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await start()
    session = await control.session()
    session.send(start_job=toy_order(control, tmp_path / "a", SLOW))
    await session.until("job_progress", event="")
    (entry,) = agent.works._entries.values()
    # As one in an uninterruptible sleep: signals change nothing.
    monkeypatch.setattr(entry.running, "stop", lambda _: None)
    session.send(start_job=toy_order(control, tmp_path / "b", QUIET, epoch=2))
    session.send(start_replica=serve(control))
    assert (await session.until("replica_changed")).ready
    await session.beats(1)
    running = {(work.work, work.epoch) for work in session.of("heartbeat")[-1].running}
    assert {epoch for work, epoch in running if work == "0a" * 16} == {1, 2}
    assert [asked.work.work for asked in control.asked] == ["0a" * 16, "0b" * 16 + "/0"]
    # The older one ends after all, and the newer one has its place.
    os.killpg(entry.running.pid, signal.SIGKILL)
    assert (await session.until("job_ended")).work.epoch == 2


async def test_a_start_that_is_called_off_while_it_waits_for_keys_is_over_at_once(
    control: FakeControlPlane, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await start()
    session = await control.session()

    async def never(_: object) -> rpc.ReleaseKeysResponse:
        return await asyncio.Future()

    monkeypatch.setattr(agent.works, "release", never)
    order = toy_order(control, tmp_path, QUIET)
    session.send(start_job=order)
    await session.beats(3)
    session.send(stop=rpc.StopWork(work=order.work, grace_seconds=30))
    ended = await session.until("job_ended")
    assert (ended.succeeded, ended.reason) == (False, "LEASE_LOST")
    await session.beats(2)
    assert not session.of("heartbeat")[-1].running


async def test_work_that_asks_for_keys_when_the_connection_ends_asks_again(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    await start()
    session = await control.session()
    control.releases.clear()
    session.send(start_job=toy_order(control, tmp_path, QUIET))
    while not control.asked:
        await session.beats(1)
    session.close()
    again = await control.session()
    control.releases.set()
    ended = await again.until("job_ended")
    assert (ended.succeeded, ended.reason) == (True, "")
    assert len(control.asked) == 2


async def test_work_that_is_not_leased_is_not_started(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    await start()
    session = await control.session()
    refused = toy_order(control, tmp_path, QUIET)
    control.keys.clear()
    session.send(start_job=refused)
    await session.beats(10)
    assert len(control.asked) == 1
    assert session.of("job_ended") == []
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.attack
async def test_a_work_cannot_name_a_folder_elsewhere(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    await start()
    session = await control.session()
    bad = toy_order(control, tmp_path, QUIET)
    control.keys["../../x"] = control.keys["0a" * 16]
    bad.work.work = "../../x"
    session.send(start_job=bad)
    ended = await session.until("job_ended")
    assert (ended.succeeded, ended.reason) == (False, "INVALID_INPUT")


def serve(control: FakeControlPlane, length: int = 64) -> rpc.StartReplica:
    work = "0b" * 16 + "/0"
    model = rpc.ArtifactKey(name="m", kind="model", folder="p/x", object="x", project="p", key=b"k")
    control.keys[work] = rpc.ReleaseKeysResponse(inputs=[model], certificate="CERTIFICATE")
    control.leases.add((work, 1))
    return rpc.StartReplica(
        work=rpc.WorkEpoch(work=work, epoch=1),
        endpoint="projects/p/endpoints/e",
        devices=[0],
        max_sequence_length=length,
        cache_bytes=1 << 20,
    )


async def test_a_replica_says_when_it_is_ready_and_that_it_has_ended(
    control: FakeControlPlane, start: Start
) -> None:
    agent = await start()
    session = await control.session()
    session.send(start_replica=serve(control))
    ready = await session.until("replica_changed")
    assert (ready.ready, ready.ended, ready.address) == (True, False, "127.0.0.1:4242")
    assert control.asked[0].certificate_request.startswith("-----BEGIN CERTIFICATE REQUEST")
    session.close()
    again = await control.session()
    assert (await again.until("replica_changed")).ready
    os.kill(next(iter(agent.works._entries.values())).running.pid, signal.SIGKILL)
    ended = await again.until("replica_changed", ended=True)
    assert ended.message == (
        "the replica ended: its process was killed by SIGKILL, as the kernel does when memory runs"
        " out; its log on the node says more"
    )


async def test_what_it_can_run_is_said_in_the_hello_and_again_when_it_is_news(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    agent = await start()
    first = await control.session()
    first.send(start_job=toy_order(control, tmp_path, SLOW))
    await first.until("job_progress", event="")
    (hello,) = first.of("hello")
    assert list(hello.capabilities) == []
    lacks = [node_pb2.Capability(kind="train", reason="torch is not installed")]
    agent.tell(lacks)
    second = await control.session()
    (hello,) = [await second.until("hello")]
    assert list(hello.capabilities) == lacks
    # Work goes on meanwhile.
    assert [work.epoch for work in hello.running] == [1]
    agent.tell(lacks)
    await second.beats(3)
    assert control.sessions.empty()


async def test_a_replica_that_cannot_start_says_why(
    control: FakeControlPlane, start: Start
) -> None:
    await start()
    session = await control.session()
    session.send(start_replica=serve(control, length=13))
    ended = await session.until("replica_changed")
    assert (ended.ready, ended.ended, ended.message) == (False, True, "no room")


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
