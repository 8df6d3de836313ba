"""Asking through the gateway against asking a replica directly: what does the gateway cost?

The same client asks the same stand-in replica, once through a whole gateway process (TLS, bearer
token, access, tokenizing, detokenizing, usage) and once over the stream that gateways use. Beside
tokens per second it measures what the gateway's process takes of the processor for each token, and
how much later the first token comes. All share the machine: on few cores the client and the replica
take their part of the saturated figures.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc.aio

from appliance.api.inference.v1 import generation_pb2, worker_service_pb2
from appliance.api.inference.v1.worker_service_pb2_grpc import WorkerServiceStub
from appliance.client.inference import AsyncInference
from appliance.core.errors import ApplianceError
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import Authority, make_csr, new_private_key
from appliance.crypto.tokens import Parsed, TokenKind, digest_of, text_of
from appliance.wire.tls import channel
from bench import gateway_stand_ins as stand_ins
from bench.gateway_stand_ins import CLUSTER, KINDS, LONG, Cast, Pair, endpoint
from bench.measure import AT_MOST, Bar, Contender, Outcome, at_least, compare, run

STREAMS = {"saturated": 16, "paced": 64}
TOKENS = {"saturated": 300, "paced": 100}
ROUNDS = 5
DIRECT = "directly from the replica"
FIRST_TOKENS = 200
START_SECONDS = 30.0
PROMPT = "Say what you always say, and say it again when you are done with it."
NAME = "gateway_relay"


@dataclass(frozen=True)
class Stage:
    """Everything that runs, and how to reach it."""

    gateway: subprocess.Popen[bytes]
    port: int
    ports: dict[str, int]
    ca: bytes
    identity: Pair
    token: str

    def through(self) -> AsyncInference:
        """The client of the gateway."""
        return AsyncInference(f"127.0.0.1:{self.port}", self.ca, self.token)

    def direct(self, kind: str) -> grpc.aio.Channel:
        """A channel to a replica, with the right to attach."""
        pair, name = self.identity, stand_ins.replica(kind).server_name
        address = f"127.0.0.1:{self.ports[kind]}"
        return channel(address, self.ca, pair.key, pair.certificate, server_name=name)


def main() -> int:
    """Run it; 1 when a bar does not hold."""
    return run(NAME, measure)


def measure() -> Outcome:
    """Throughput, processor time and first tokens."""
    with stage() as running:
        tables = {kind: _throughput(running, kind) for kind in KINDS}
        cost = {
            kind: statistics.median(_cost(running, kind) for _ in range(ROUNDS)) for kind in KINDS
        }
        late = asyncio.run(_first_tokens(running))
    figures = {**{f"{kind}_microseconds_per_token": cost[kind] for kind in KINDS}, **late}
    print(f"\n{NAME}, beside it")
    for name, value in figures.items():
        print(f"  {name:44}{value:>10.4g}")
    added = late["first_token_p50_added_milliseconds"]
    bars = [
        at_least(tables["paced"], DIRECT, 0.95),
        Bar("processor time a token, saturated", cost["saturated"], "us", AT_MOST, 250, ROUNDS),
        Bar("first token later by, p50", added, "ms", AT_MOST, 20, FIRST_TOKENS),
    ]
    return Outcome(bars, {"throughput": tables, "streams": STREAMS, "figures": figures})


@contextmanager
def stage() -> Iterator[Stage]:
    """Start the stand-ins and a gateway; end both."""
    authority = Authority.create(CLUSTER)
    token = Parsed(TokenKind.SERVICE, secrets.token_hex(8), "a" * 52)
    key = secrets.token_bytes(32)
    cast = Cast(
        authority.certificate_pem,
        _pair(authority, PrincipalKind.CONTROL, "control"),
        {kind: _pair(authority, PrincipalKind.REPLICA, kind) for kind in (*KINDS, LONG)},
        key,
        token.id,
        digest_of(token, key),
    )
    identity = _pair(authority, PrincipalKind.GATEWAY, "gateway", client=True)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=stand_ins.run, args=(cast, there))
    process.start()
    try:
        if not here.poll(START_SECONDS):
            raise SystemExit("the stand-ins did not start")
        control, ports = here.recv()
        with (
            tempfile.TemporaryDirectory() as folder,
            _gateway(Path(folder), cast.ca, identity, control) as (gateway, port),
        ):
            found = Stage(gateway, port, ports, cast.ca, identity, text_of(token))
            asyncio.run(_wait_for(found))
            yield found
        here.send("stop")
    finally:
        process.join(5)
        process.kill()


def _pair(
    authority: Authority, kind: PrincipalKind, identifier: str, *, client: bool = False
) -> Pair:
    key = new_private_key()
    principal = Principal(kind, identifier)
    return Pair(key, authority.issue(make_csr(key), principal, server=True, client=client))


@contextmanager
def _gateway(
    folder: Path, ca: bytes, identity: Pair, control: int
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    files = {"key.pem": identity.key, "cert.pem": identity.certificate, "ca.pem": ca}
    for name, data in files.items():
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o600)
    port = _free_port()
    (folder / "gateway.toml").write_text(
        f'cluster_id = "{CLUSTER}"\ncontrol = "127.0.0.1:{control}"\nmetrics = "127.0.0.1:0"\n'
        'key = "key.pem"\ncertificate = "cert.pem"\nca = "ca.pem"\n'
        f'[listen]\ngrpc = "127.0.0.1:{port}"\nopenai = "127.0.0.1:0"\n'
        "[limits]\ncalls_per_caller = 256\n"
    )
    with (folder / "gateway.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "appliance.gateway"),
                *("--config", str(folder / "gateway.toml")),
            ],
            stderr=log,
        )
    try:
        yield process, port
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _wait_for(running: Stage) -> None:
    """Return when an answer came through the gateway from each replica."""
    limit = time.monotonic() + START_SECONDS
    for kind in KINDS:
        while True:
            try:
                async with running.through() as client:
                    await _drink(client, kind, 1)
                break
            except ApplianceError as error:
                if time.monotonic() > limit:
                    raise SystemExit(f"the gateway does not serve: {error}") from error
                await asyncio.sleep(0.2)


def _throughput(running: Stage, kind: str) -> dict[str, object]:
    streams, tokens = STREAMS[kind], TOKENS[kind]
    return compare(
        f"{NAME}_{kind}",
        f"tokens/s, {streams} streams",
        Contender("through the gateway", lambda: asyncio.run(_through(running, kind))),
        Contender(
            DIRECT,
            lambda: asyncio.run(_directly(running, kind, streams, tokens)),
        ),
        rounds=ROUNDS,
    )


async def _through(running: Stage, kind: str) -> float:
    """Tokens per second of all streams together, through the gateway."""
    streams, tokens = STREAMS[kind], TOKENS[kind]
    async with running.through() as client:
        await _drink(client, kind, 1)  # the handshake is not part of it
        start = time.perf_counter()
        await asyncio.gather(*(_drink(client, kind, tokens) for _ in range(streams)))
        return streams * tokens / (time.perf_counter() - start)


async def _drink(client: AsyncInference, kind: str, tokens: int) -> None:
    count = 0
    pieces = client.generate(endpoint(kind), prompt=PROMPT, max_tokens=tokens)
    async for piece in pieces:
        count += len(piece.token_ids)
    if count != tokens:
        raise SystemExit(f"{count} of {tokens} tokens came through")


async def _directly(running: Stage, kind: str, streams: int, tokens: int) -> float:
    """The same without a gateway."""
    async with running.direct(kind) as link:
        asker = Asker(link)
        await asker.ask(1, 1)
        start = time.perf_counter()
        await asker.ask(streams, tokens)
        return streams * tokens / (time.perf_counter() - start)


class Asker:
    """Asks a replica over one stream, as a gateway does."""

    def __init__(self, link: grpc.aio.Channel) -> None:
        self._call: Any = WorkerServiceStub(link).Attach()
        self._next = 1
        self._prompt = stand_ins.letters().encode(PROMPT).ids

    async def ask(self, streams: int, tokens: int) -> None:
        """Take `tokens` tokens of each of `streams` answers."""
        for _ in range(streams):
            submit = worker_service_pb2.Submit(
                id=self._next,
                prompt_token_ids=self._prompt,
                sampling=generation_pb2.Sampling(max_tokens=tokens),
            )
            self._next += 1
            await self._call.write(worker_service_pb2.AttachRequest(submit=submit))
        left = streams * tokens
        while left:
            message = await self._call.read()
            # grpc-stubs does not know the end marker.
            if message is cast("Any", grpc.aio).EOF:
                raise SystemExit("the replica ended the stream")
            left -= sum(len(output.token_ids) for output in message.outputs)


def _cost(running: Stage, kind: str) -> float:
    """Microseconds of processor time that the gateway takes for one token."""
    before = _cpu_seconds(running.gateway.pid)
    asyncio.run(_through(running, kind))
    taken = _cpu_seconds(running.gateway.pid) - before
    return 1e6 * taken / (STREAMS[kind] * TOKENS[kind])


def _cpu_seconds(process: int) -> float:
    """User and system time of a process (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _first_tokens(running: Stage) -> dict[str, float]:
    """Milliseconds to the first token of an answer, one at a time, and what the gateway adds."""
    async with running.through() as client, running.direct("saturated") as link:
        asker = Asker(link)
        ours, direct = [], []
        for _ in range(FIRST_TOKENS):
            ours.append(await _milliseconds(lambda: _drink(client, "saturated", 1)))
            direct.append(await _milliseconds(lambda: asker.ask(1, 1)))
    found = {}
    for place, name in ((49, "p50"), (98, "p99")):
        mine, its = (statistics.quantiles(times, n=100)[place] for times in (ours, direct))
        found[f"first_token_{name}_milliseconds"] = mine
        found[f"first_token_{name}_added_milliseconds"] = mine - its
    return found


async def _milliseconds(work: Callable[[], Awaitable[None]]) -> float:
    start = time.perf_counter()
    await work()
    return 1e3 * (time.perf_counter() - start)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
