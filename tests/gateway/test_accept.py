"""Connections of the HTTPS front: held in silence, half opened, too many; and who still gets in."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from appliance.gateway import accept, main
from appliance.gateway.config import GatewayLimits
from appliance.gateway.connections import ConnectionSlot
from tests.fakes.gateway import Stage, stage, until
from tests.fakes.worker import Worker


def trust(found: Stage) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=found.folder / "ca.pem")


Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Dialler:
    """Opens connections from any loopback address, and closes them all."""

    def __init__(self, found: Stage) -> None:
        self._found = found
        self._opened: list[asyncio.StreamWriter] = []

    async def open(self, source: str = "127.0.0.1", *, tls: bool = True) -> Pair:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            self._found.gateway.http.port,
            ssl=trust(self._found) if tls else None,
            local_addr=(source, 0),
        )
        self._opened.append(writer)
        return reader, writer

    async def ask(self, pair: Pair, token: str = "") -> tuple[bytes, dict[str, Any]]:
        """Head and body of `GET /v1/models`."""
        reader, writer = pair
        shown = f"authorization: Bearer {token}\r\n" if token else ""
        writer.write(f"GET /v1/models HTTP/1.1\r\nhost: x\r\n{shown}\r\n".encode())
        async with asyncio.timeout(20):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return head, json.loads(await reader.readexactly(length))

    def close(self) -> None:
        for writer in self._opened:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def dialling(folder: Path, **limits: Any) -> AsyncIterator[tuple[Stage, Dialler]]:
    async with stage(folder, Worker("a"), limits=GatewayLimits(**limits)) as found:
        dialler = Dialler(found)
        try:
            yield found, dialler
        finally:
            dialler.close()


async def is_closed(pair: Pair) -> bool:
    reader, _ = pair
    async with asyncio.timeout(20):
        with contextlib.suppress(OSError):
            return await reader.read() == b""
    return True


@pytest.mark.attack
async def test_silent_connections_keep_nobody_out(tmp_path: Path) -> None:
    async with dialling(tmp_path, connections=8, connections_per_source=4) as (found, dialler):
        mine = await dialler.open("127.0.0.9")
        assert (await dialler.ask(mine, found.token))[0].startswith(b"HTTP/1.1 200 ")
        for number in range(40):
            await dialler.open(f"127.0.1.{number % 4 + 1}")
        await until(lambda: len(found.gateway.http.connections) == 8)
        # A newcomer of another address, one of a flooder's own address, and who was there before.
        for source in ("127.0.0.7", "127.0.1.1"):
            pair = await dialler.open(source)
            assert (await dialler.ask(pair, found.token))[0].startswith(b"HTTP/1.1 200 ")
        assert (await dialler.ask(mine, found.token))[0].startswith(b"HTTP/1.1 200 ")
        assert len(found.gateway.http.connections) == 8
        rows = found.gateway.refusals.drain()
        assert sum(row.reasons["CONNECTIONS"] for row in rows) == 35
        assert {row.source for row in rows} == {f"127.0.1.{number}" for number in range(1, 5)}


@pytest.mark.attack
async def test_half_hellos_make_way(tmp_path: Path) -> None:
    async with dialling(tmp_path, connections=8, connections_per_source=3) as (found, dialler):
        halves = []
        for _ in range(6):
            pair = await dialler.open("127.0.1.1", tls=False)
            pair[1].write(b"\x16\x03\x01\x02\x00\x01")
            halves.append(pair)
        for pair in halves[:3]:
            assert await is_closed(pair)
        assert len(found.gateway.http.connections) == 3
        pair = await dialler.open("127.0.1.1")
        assert (await dialler.ask(pair, found.token))[0].startswith(b"HTTP/1.1 200 ")
        dialler.close()
        await until(lambda: len(found.gateway.http.connections) == 0)


@pytest.mark.attack
async def test_who_makes_way_before_its_handshake_began_is_closed_too(tmp_path: Path) -> None:
    async with dialling(tmp_path, connections=8, connections_per_source=2) as (found, _dialler):
        # All of them wait before the first one is accepted.
        port = found.gateway.http.port
        sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(10)]
        for each in sockets:
            each.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(20):
            for each in sockets[:8]:
                with contextlib.suppress(OSError):
                    assert await loop.sock_recv(each, 1) == b""
        assert len(found.gateway.http.connections) == 2
        for each in sockets:
            each.close()
        await until(lambda: len(found.gateway.http.connections) == 0)


@pytest.mark.attack
async def test_who_makes_way_as_its_handshake_ends_is_closed_whole(tmp_path: Path) -> None:
    """Its descriptor is free for the next connection, and nothing of the old one is on it."""
    async with dialling(tmp_path) as (found, dialler):
        acceptor = found.gateway.http._server.servers[0]
        real = acceptor._protocol

        def leaving(place: ConnectionSlot) -> Any:
            made = real(place)
            begin = made.connection_made

            def connection_made(transport: asyncio.Transport) -> None:
                begin(transport)
                place.end()

            made.connection_made = connection_made
            return made

        acceptor._protocol = leaving
        with contextlib.suppress(OSError):
            assert await is_closed(await dialler.open())
        acceptor._protocol = real
        await until(lambda: len(found.gateway.http.connections) == 0)
        pair = await dialler.open()
        assert (await dialler.ask(pair, found.token))[0].startswith(b"HTTP/1.1 200 ")


async def test_a_fault_while_a_connection_opens_keeps_neither_place_nor_socket(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with dialling(tmp_path) as (found, dialler):
        acceptor = found.gateway.http._server.servers[0]
        real = acceptor._protocol

        def broken(_: ConnectionSlot) -> Any:
            raise ValueError("no protocol")

        acceptor._protocol = broken
        assert await is_closed(await dialler.open(tls=False))
        acceptor._protocol = real
        await until(lambda: len(found.gateway.http.connections) == 0)
        (row,) = found.gateway.refusals.drain()
        assert row.reasons == {"HANDSHAKE": 1}
    assert "a connection could not be opened" in caplog.text


@pytest.mark.attack
@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n"])
async def test_a_handshake_has_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hello: bytes
) -> None:
    monkeypatch.setattr(accept, "HELLO_SECONDS", 0.2)
    async with dialling(tmp_path) as (found, dialler):
        pair = await dialler.open(tls=False)
        pair[1].write(hello)
        assert await is_closed(pair)
        await until(lambda: len(found.gateway.http.connections) == 0)
        (row,) = found.gateway.refusals.drain()
        assert row.reasons == {"HANDSHAKE": 1}


@pytest.mark.attack
async def test_a_source_over_its_rate_is_closed_before_tls(tmp_path: Path) -> None:
    limits = {"connections_per_second": 0.001, "connection_burst": 2}
    async with dialling(tmp_path, **limits) as (found, dialler):
        for _ in range(2):
            await dialler.open("127.0.1.1")
        with pytest.raises(OSError):
            await dialler.open("127.0.1.1")
        pair = await dialler.open("127.0.0.9")
        assert (await dialler.ask(pair, found.token))[0].startswith(b"HTTP/1.1 200 ")


async def test_when_known_callers_hold_all_the_next_one_is_told_so(tmp_path: Path) -> None:
    async with dialling(tmp_path, connections=2) as (found, dialler):
        for _ in range(2):
            pair = await dialler.open()
            await dialler.ask(pair, found.token)
        pair = await dialler.open("127.0.0.9")
        head, body = await dialler.ask(pair, found.token)
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in head
        assert b"x-request-id: " in head
        assert body["error"]["type"] == "service_unavailable_error"
        assert await is_closed(pair)
        await until(lambda: len(found.gateway.http.connections) == 2)


@pytest.mark.attack
async def test_without_descriptors_it_waits_and_goes_on(tmp_path: Path) -> None:
    async with dialling(tmp_path) as (found, dialler):
        acceptor = found.gateway.http._server.servers[0]
        real = acceptor._listening

        class Exhausted:
            """The same socket, once without descriptors."""

            refused = 0

            def accept(self) -> tuple[socket.socket, Any]:
                if not self.refused:
                    self.refused += 1
                    raise OSError(errno.EMFILE, "Too many open files")
                return real.accept()

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        acceptor._listening = stand_in = Exhausted()
        pair = await dialler.open()
        assert (await dialler.ask(pair, found.token))[0].startswith(b"HTTP/1.1 200 ")
        assert stand_in.refused == 1
        acceptor._listening = real


async def test_memory_of_a_crowd_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr(main, "CROWD", 3)
    monkeypatch.setattr(main, "CROWD_SECONDS", 0.01)
    monkeypatch.setattr(main, "give_back_memory", lambda: given.append(True))
    async with dialling(tmp_path) as (found, dialler):
        for _ in range(3):
            assert given == []
            _, writer = await dialler.open()
            writer.transport.abort()
        await until(lambda: found.gateway.http.connections.ended == 3)
        await until(lambda: given == [True])
