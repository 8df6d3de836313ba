"""The HTTPS server alone: peers that read nothing."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Any

import pytest

from appliance.gateway.http import ConnectionLimits, HttpFront
from appliance.gateway.identity import begin
from tests.fakes.gateway import configuration

ADMISSION = ConnectionLimits(
    connections=10, connections_per_source=10, per_second=1e6, burst=1000, send_seconds=0.3
)
CHUNK = bytes(1 << 20)


@pytest.mark.attack
async def test_a_peer_that_reads_nothing_is_cut_off(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.create_task(receive_end(receive))
        while not gone.done():
            with contextlib.suppress(OSError):
                await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
        ended.set()

    async def receive_end(receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    config = configuration(tmp_path, 1)
    _, shown = await begin(config)
    front = HttpFront(
        endless,
        "127.0.0.1:0",
        lambda: shown.context,
        admission=ADMISSION,
        refused=lambda source, reason: None,
        grace=1.0,
    )
    front.start()
    trust = ssl.create_default_context(cafile=config.ca)
    _, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=trust, limit=1)
    try:
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(20):
            await ended.wait()
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        await front.stop()


@pytest.mark.parametrize(
    ("listen", "hosts"),
    [("[::]:0", ["::1", "127.0.0.1"]), ("[::1]:0", ["::1"]), ("localhost:0", ["localhost"])],
)
async def test_it_listens_on_either_kind_of_address_and_on_both(
    tmp_path: Path, listen: str, hosts: list[str]
) -> None:
    async def answers(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    config = configuration(tmp_path, 1)
    _, shown = await begin(config)
    front = HttpFront(
        answers,
        listen,
        lambda: shown.context,
        admission=ADMISSION,
        refused=lambda source, reason: None,
        grace=1.0,
    )
    front.start()
    trust = ssl.create_default_context(cafile=config.ca)
    try:
        for host in hosts:
            reader, writer = await asyncio.open_connection(
                host, front.port, ssl=trust, server_hostname="localhost"
            )
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert b" 204 " in await asyncio.wait_for(reader.readline(), 20)
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()
    finally:
        await front.stop()
