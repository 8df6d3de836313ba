"""A worker without an engine: the real service over mTLS, with a scripted way to fail.

Its model answers from the length of what it was given alone, so an answer that goes on elsewhere
is the same only when the ids given were the prompt and everything generated, once each.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from appliance.api.inference.v1 import generation_pb2, worker_service_pb2, worker_service_pb2_grpc
from appliance.core.identity import Principal, PrincipalKind
from appliance.wire import tls
from appliance.wire.machine_door import MachineDoor
from appliance.wire.rules import rules_of
from appliance.wire.server import Listener, Server, Service
from tests.fakes.wire import CLUSTER, authority, issued

STORY = "Es war einmal ein Modell 🤗, das über 日本語 sprach: naïve Fragen, kluge Antworten. "
END = 257
RULES = rules_of(worker_service_pb2.DESCRIPTOR.services_by_name.values())
STOP = generation_pb2.FINISH_REASON_STOP
LENGTH = generation_pb2.FINISH_REASON_LENGTH


def tokenizer(*, other: bool = False) -> Tokenizer:
    """One token for each byte, and two special ones: 256 begins, 257 ends.

    The `other` one has its tokens in another order.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=other)
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    return made


STORY_IDS = tokenizer().encode(STORY).ids


def next_token(ids: int) -> int:
    """What the model says after so many tokens."""
    return STORY_IDS[ids % len(STORY_IDS)]


OTHER_IDS = tokenizer(other=True).encode(STORY[::-1]).ids
"""What another version of the model says, with another tokenizer."""


def story(prompt: int, tokens: int) -> list[int]:
    """The whole answer to a prompt of some length."""
    return [next_token(prompt + number) for number in range(tokens)]


@dataclass
class Script:
    """How it fails; nothing set: it does not.

    `die_after`: the stream breaks after so many tokens of an answer; `hang_after`: heartbeats go
    on, steps do not; `end_after`: the model ends the answer; `slots`: a step works on so many, the
    others wait; `silent_slots`: it does not say how many; `most`: it takes no more, and says that
    it is busy; `lost`: no step makes a token for the answers with these numbers; `waiting` and
    `running`: what its heartbeats say, whatever is true; `empty_steps`: steps count that make no
    token.
    """

    die_after: int | None = None
    hang_after: int | None = None
    end_after: int | None = None
    slots: int = 0
    silent_slots: bool = False
    most: int = 1000
    lost: frozenset[int] = frozenset()
    waiting: int | None = None
    running: int | None = None
    empty_steps: bool = False
    refuse: str = ""
    wrong: bool = False
    seconds: float = 0.0
    silent: bool = False
    draining: bool = False
    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE


@dataclass
class Worker:
    """One replica."""

    id: str
    script: Script = field(default_factory=Script)
    submits: list[Any] = field(default_factory=list)
    aborts: list[int] = field(default_factory=list)
    metadata: list[Any] = field(default_factory=list)
    port: int = 0
    other: bool = False
    """Whether it serves another version of the model, with `OTHER_IDS`."""
    shown: Principal | None = None
    """Whose certificate it shows, when not its own."""
    running: int = 0
    finished: int = 0
    _server: Server | None = None

    async def start(self) -> None:
        shown = self.shown or self.identity
        pair = issued(shown.kind, shown.id, server=True)
        credentials = tls.server_credentials(
            pair.key, pair.certificate, authority().certificate_pem, require_client=True
        )
        self._server = Server(grace=0.0)
        self.port = self._server.bind(
            Listener(
                f"127.0.0.1:{self.port}",
                "listen",
                credentials,
                [MachineDoor(RULES, CLUSTER, {PrincipalKind.GATEWAY})],
                [
                    Service(
                        _Service(self),
                        worker_service_pb2_grpc.add_WorkerServiceServicer_to_server,
                    )
                ],
                RULES,
            )
        )
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop()

    @property
    def identity(self) -> Principal:
        return Principal(PrincipalKind.REPLICA, self.id)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


class _Service(worker_service_pb2_grpc.WorkerServiceServicer):
    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def Attach(self, request_iterator: AsyncIterator[Any], context: Any) -> None:
        stream = _Stream(self._worker)
        self._worker.metadata.append(context.invocation_metadata())
        tasks = {
            asyncio.create_task(stream.read(request_iterator)),
            asyncio.create_task(stream.step()),
            asyncio.create_task(stream.write(context)),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._worker.running -= len(stream.answers)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            if isinstance(task.exception(), _DiedError):
                await context.abort(self._worker.script.code, "died")
            task.result()


class _DiedError(Exception):
    pass


class _Stream:
    """One gateway's answers: [ids so far, tokens made, tokens asked for, the submit]."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.answers: dict[int, list[Any]] = {}
        self.outputs: list[Any] = []
        self.filled = asyncio.Event()
        self.steps = 0
        self.sending = False

    async def read(self, orders: AsyncIterator[Any]) -> None:
        async for order in orders:
            if order.HasField("abort"):
                self.worker.aborts.append(order.abort.id)
                if self.answers.pop(order.abort.id, None) is not None:
                    self.worker.running -= 1
                continue
            submit = order.submit
            self.worker.submits.append(submit)
            if self.worker.script.refuse:
                self.put(id=submit.id, refused=self.worker.script.refuse)
                continue
            if len(self.answers) >= self.worker.script.most:
                self.put(id=submit.id, refused="too many", busy=True)
                continue
            count = len(submit.prompt_token_ids)
            self.answers[submit.id] = [count, 0, submit.sampling.max_tokens, submit]
            self.worker.running += 1
            self.filled.set()

    def put(self, **fields: Any) -> None:
        self.outputs.append(worker_service_pb2.StepOutput(**fields))
        self.filled.set()

    async def step(self) -> None:
        while True:
            script = self.worker.script
            await asyncio.sleep(script.seconds)
            if not self.answers:
                await asyncio.sleep(0.001)
                continue
            moved = False
            for identifier in list(self.answers)[: script.slots or None]:
                if identifier in script.lost:
                    continue
                try:
                    moved |= self._token(identifier, script)
                except _DiedError:
                    # What was made before goes out first: it dies after that token, not near it.
                    await self.sent()
                    raise
            self.steps += moved or script.empty_steps

    async def sent(self) -> None:
        """Wait until everything is on its way."""
        while self.outputs or self.sending:  # noqa: ASYNC110 - a fake may look often
            await asyncio.sleep(0.001)

    def _token(self, identifier: int, script: Script) -> bool:
        answer = self.answers[identifier]
        count, made, most, _ = answer
        if script.hang_after is not None and made >= script.hang_after:
            return False
        if script.die_after is not None and made >= script.die_after:
            raise _DiedError
        said = OTHER_IDS if self.worker.other else STORY_IDS
        token = 100_000 if script.wrong else said[count % len(said)]
        if script.end_after is not None and made >= script.end_after:
            token = END
        answer[0], answer[1] = count + 1, made + 1
        finish = STOP if token == END else LENGTH if made + 1 >= most else 0
        self.put(id=identifier, token_ids=[token], finish_reason=finish)
        if finish:
            del self.answers[identifier]
            self.worker.running -= 1
            self.worker.finished += 1
        return True

    async def write(self, context: Any) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await self.filled.wait()
            self.filled.clear()
            if self.worker.script.silent:
                await asyncio.sleep(0.05)
                continue
            outputs, self.outputs = self.outputs, []
            script, slots = self.worker.script, self.worker.script.slots
            waiting = max(0, len(self.answers) - slots) if slots else 0
            running = len(self.answers) - waiting
            beat = worker_service_pb2.Heartbeat(
                steps=self.steps,
                running=running if script.running is None else script.running,
                waiting=waiting if script.waiting is None else script.waiting,
                slots=0 if script.silent_slots else slots,
                draining=script.draining,
            )
            self.sending = True
            await context.write(worker_service_pb2.AttachResponse(outputs=outputs, heartbeat=beat))
            self.sending = False
