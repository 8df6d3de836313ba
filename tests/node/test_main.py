"""The agent as a process: it joins, shows its health, and takes its work with it when it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.core import process_tree
from tests.fakes.control_plane import FakeControlPlane
from tests.fakes.ports import free_port
from tests.fakes.site import TOY_AGENT
from tests.fakes.toy_kind import BUSY
from tests.fakes.toy_order import toy_order


def configure(control: FakeControlPlane, folder: Path, health: int) -> Path:
    token = folder / "join.token"
    token.touch(0o600)
    token.write_text(control.token)
    file = folder / "node.toml"
    file.write_text(
        f'objects = "file://{folder}/objects"\n'
        'join_token = "join.token"\n'
        'state = "state"\n'
        f'health = "127.0.0.1:{health}"\n'
        f'metrics = "127.0.0.1:{free_port()}"\n'
        f'[control]\nca = "ca.pem"\nca_fingerprint = "{control.authority.fingerprint()}"\n'
        f'join = "127.0.0.1:{control.join_port}"\n'
        f'machines = "127.0.0.1:{control.machine_port}"\n'
        '[devices]\nkind = "cpu"\ncount = 2\n'
    )
    return file


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_an_agent_takes_its_work_with_it(tmp_path: Path, number: signal.Signals) -> None:
    health = free_port()
    async with FakeControlPlane(tmp_path) as control:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *TOY_AGENT,
            str(configure(control, tmp_path, health)),
        )
        try:
            session = await control.session()
            session.send(start_job=toy_order(control, tmp_path, BUSY))
            await session.until("job_progress", event="started")
            assert await serving(health)
            started = process_tree.children(process.pid)
            (leader_pid,) = [pid for pid in started if pid in process_tree.session(pid)]
            waiting = [os.pidfd_open(pid) for pid in process_tree.session(leader_pid)]
            assert len(waiting) == 3
            process.send_signal(number)
            async with asyncio.timeout(30):
                code = await process.wait()
            assert code == (0 if number == signal.SIGTERM else -number)
            for descriptor in waiting:
                await ended(descriptor)
            assert process_tree.session(leader_pid) == []
            assert session.of("job_ended") == []
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_a_node_whose_certificate_has_ended_stays_and_takes_the_next_token(
    tmp_path: Path,
) -> None:
    health = free_port()
    async with FakeControlPlane(tmp_path) as control:
        control.issued_ago = timedelta(days=3)
        file = configure(control, tmp_path, health)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "appliance.node", "--config", str(file)),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            said = b""
            async with asyncio.timeout(60):
                while b"create-join-token gpu-1" not in said:
                    said = await process.stderr.readline()
                    assert process.returncode is None
            assert not await serving(health)
            control.issued_ago, control.token = timedelta(), "sla_join_next_secret_crc"
            configure(control, tmp_path, health)
            session = await control.session()
            await session.until("hello")
        finally:
            process.terminate()
            await process.communicate()
        assert process.returncode == 0


async def test_a_wrong_authority_is_one_sentence(tmp_path: Path) -> None:
    async with FakeControlPlane(tmp_path) as control:
        file = configure(control, tmp_path, free_port())
        text = file.read_text().replace(control.authority.fingerprint(), "0" * 64)
        file.write_text(text)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "appliance.node",
            "--config",
            str(file),
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await process.communicate()
        assert process.returncode == 1
        assert b"is not the authority that the join token came with" in said
        assert b"Traceback" not in said
        assert control.token.encode() not in said


async def serving(port: int) -> bool:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def ended(descriptor: int) -> None:
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, event.set)
    async with asyncio.timeout(10):
        await event.wait()
    loop.remove_reader(descriptor)
    os.close(descriptor)
