"""The OpenAI-compatible front: chat and text completions, and the list of models.

Rules kept here:
* the API key is the appliance's bearer token; who calls is decided before anything else of a
  request is looked at, on every path, also on one that does not exist;
* a known caller makes so many requests a second at most, as on the other front;
* a body is read up to a limit of bytes, at a rate at least, and so many at a time for one caller;
* nothing is sent before the first token, so an error until then has its own status;
* every refusal has the API's form, a request id of ours, and is recorded or counted; a fault of
  ours is one as well, and the log hears nothing of the text it was about;
* whoever leaves ends the answer at once, streamed or not (who reads nothing is cut off by the
  server, see `http`).

The attacks: a body that never ends, comes byte by byte or fills the memory; answers that nobody
reads; refusals that leave no trace, or a trace each. The way of a call itself is
`appliance.gateway.pipeline`. Made by `appliance.gateway.main`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from starlette.requests import Request as HttpRequest
from starlette.types import Receive, Scope, Send

from appliance.core import log
from appliance.core.errors import (
    ApplianceError,
    Cancelled,
    Exhausted,
    InvalidInput,
    NotFound,
    Unavailable,
    UnknownMethod,
)
from appliance.core.numbers import written
from appliance.core.waiting import in_seconds
from appliance.gateway import openai_answer as answers
from appliance.gateway import openai_request as requests
from appliance.gateway.config import GatewayLimits
from appliance.gateway.hidden_errors import hiding_errors
from appliance.gateway.openai_answer import Form
from appliance.gateway.openai_request import OpenAiRequest, Parse
from appliance.gateway.openai_sender import Sender, kept_alive
from appliance.gateway.pipeline import AnswerPiece, InferenceCall, InferencePipeline, meaning
from appliance.gateway.usage import INFERENCE
from appliance.wire.admission import Rates, Shares
from appliance.wire.door import UNKNOWN

FRONT = "openai"
BODY_GRACE_SECONDS = 5.0
"""Time for a body, beside what its bytes give it."""
BODY_BYTES_PER_SECOND = 16 << 10
"""A body that comes slower for longer than the grace is refused."""
_MODELS = "/v1/models"
_CHAT = "/v1/chat/completions"
_TEXT = "/v1/completions"


class BodyTooLarge(Exhausted):
    """The body has more bytes than a request may."""

    reason = "BODY_TOO_LARGE"


class BodyTooSlow(InvalidInput):
    """The body came slower than a body may."""

    reason = "BODY_TOO_SLOW"


class UnknownPath(NotFound):
    """There is nothing at this path."""

    reason = "UNKNOWN_PATH"


class WrongMethod(UnknownMethod):
    """The path takes other methods."""

    reason = "WRONG_METHOD"


Work = Callable[["Visit"], Awaitable[None]]


class Visit:
    """One request on its way: what came, what is known of it, how to answer."""

    def __init__(
        self, call: InferenceCall, http: HttpRequest, receive: Receive, sender: Sender
    ) -> None:
        self.call = call
        self.http = http
        self.receive = receive
        self.sender = sender

    @property
    def authorization(self) -> str | None:
        """The header that names the caller."""
        return self.http.headers.get("authorization")


class OpenAi:
    """The ASGI application of the front.

    Args:
        pipeline: takes the calls.
        limits: of bodies, and of requests a second.
    """

    def __init__(self, pipeline: InferencePipeline, limits: GatewayLimits) -> None:
        self._pipeline = pipeline
        self._rates = Rates(limits.calls_per_second, limits.call_burst, time.monotonic)
        self._bodies = bodies = Shares(
            limits.calls, limits.calls_per_caller, "too many of your requests are on their way"
        )
        chat = Completions(pipeline, limits, bodies, requests.chat, chat=True)
        text = Completions(pipeline, limits, bodies, requests.completion, chat=False)
        self._routes: Mapping[str, tuple[str, Work]] = {
            _MODELS: ("GET", self._models),
            _CHAT: ("POST", chat.serve),
            _TEXT: ("POST", text.serve),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request from its head to its last byte."""
        http = HttpRequest(scope)
        # Always ours: what a caller chooses would name somebody else's call in the audit log.
        request_id = uuid.uuid4().hex
        log.request_id.set(request_id)
        sender = Sender(send, request_id)
        path, allowed, work = self._route(http)
        asks = path != UNKNOWN and allowed == http.method == "POST"
        method = INFERENCE if asks else path
        call = self._pipeline.begin(FRONT, request_id, "", _source(http), method)
        error: ApplianceError | None = None
        try:
            with hiding_errors(request_id):
                await self._serve(Visit(call, http, receive, sender), allowed, work)
        except ApplianceError as refused:
            error = refused
        except asyncio.CancelledError as ended:
            error = meaning(ended)
            raise
        finally:
            error = self._end(call, error)
        try:
            if error is not None:
                # What was not sent in time is not waited for either.
                sender.closes |= isinstance(error, BodyTooSlow)
                with hiding_errors(request_id):
                    await sender.fail(error)
        finally:
            # It knows the frame that knows it, and both would stay until somebody searches.
            del error

    def _end(self, call: InferenceCall, error: ApplianceError | None) -> ApplianceError | None:
        """End the call, whose own faults do not reach its caller either."""
        try:
            with hiding_errors(call.request_id):
                self._pipeline.end(call, error)
        except ApplianceError as fault:
            return fault
        return error

    def _route(self, http: HttpRequest) -> tuple[str, str, Work]:
        """Name of the path, the method that it takes, and what serves it."""
        path = str(http.scope["path"])
        if path.startswith(f"{_MODELS}/"):
            return (_MODELS, "GET", self._model)
        if path not in self._routes:
            return (UNKNOWN, "", _no_path)
        return (path, *self._routes[path])

    async def _serve(self, visit: Visit, allowed: str, work: Work) -> None:
        link = visit.http.scope["state"]["link"]
        if link.is_full:
            visit.sender.closes = True
            raise Unavailable(
                "all connections of the gateway are taken: repeat the request shortly",
                retry_after=1.0,
            )
        try:
            principal, _ = self._pipeline.identify(visit.authorization, visit.call.source)
        except Exhausted:
            visit.sender.closes = True
            raise
        visit.call.principal = principal
        link.mark_authenticated()
        wait = self._rates.wait(principal)
        if wait:
            raise Exhausted(
                f"you make more requests than one caller may: wait {in_seconds(wait)}, then repeat",
                retry_after=wait,
            )
        method = visit.http.method
        if allowed not in ("", method) and (allowed, method) != ("GET", "HEAD"):
            raise WrongMethod(
                f"this path takes {allowed}",
                allow=f"{allowed}, HEAD" if allowed == "GET" else "POST",
            )
        await work(visit)

    async def _models(self, visit: Visit) -> None:
        endpoints = self._pipeline.endpoints(visit.call.principal)
        listed = [_described(name) for name in endpoints]
        await visit.sender.whole(200, {"object": "list", "data": listed}, {})

    async def _model(self, visit: Visit) -> None:
        wanted = str(visit.http.scope["path"]).removeprefix(f"{_MODELS}/")
        endpoint = requests.endpoint_of(wanted)
        if endpoint not in self._pipeline.endpoints(visit.call.principal):
            raise NotFound("there is no such model here, or you may not ask it")
        await visit.sender.whole(200, {**_described(endpoint), "id": wanted}, {})


class Completions:
    """Answers one kind of request for an answer."""

    def __init__(
        self,
        pipeline: InferencePipeline,
        limits: GatewayLimits,
        bodies: Shares,
        parse: Parse,
        *,
        chat: bool,
    ) -> None:
        self._pipeline = pipeline
        self._limits = limits
        self._bodies = bodies
        self._parse = parse
        self._chat = chat

    async def serve(self, visit: Visit) -> None:
        """Read the body, admit the call, answer."""
        call, receive = visit.call, visit.receive
        with self._bodies.place(call.principal):
            body = requests.document(await self._body(visit.http, receive))
        call.endpoint = requests.endpoint_of(requests.model_of(body))
        self._pipeline.admit(call, visit.authorization)
        request = self._parse(body)
        work = asyncio.create_task(self._answer(call, request, visit.sender))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left = not work.done()
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        if left or work.cancelled():
            raise Cancelled("the caller left")
        work.result()

    async def _body(self, http: HttpRequest, receive: Receive) -> bytes:
        """The body. Raises BodyTooLarge, BodyTooSlow."""
        most = self._limits.body_bytes
        told = http.headers.get("content-length", "0")
        if told.isdigit() and int(told) > most:
            raise _too_large(most)
        body, more = bytearray(), True
        started = asyncio.get_running_loop().time()
        while more:
            # Each byte gives time for the next ones, so the limit of bytes is one of time too.
            due = started + BODY_GRACE_SECONDS + len(body) / BODY_BYTES_PER_SECOND
            try:
                async with asyncio.timeout_at(due):
                    message = await receive()
            except TimeoutError as error:
                raise BodyTooSlow(
                    f"the body came slower than {BODY_BYTES_PER_SECOND} bytes a second: "
                    "send it at once"
                ) from error
            if message["type"] == "http.disconnect":
                raise Cancelled("the caller left")
            body += message.get("body", b"")
            if len(body) > most:
                raise _too_large(most)
            more = message.get("more_body", False)
        return bytes(body)

    async def _answer(self, call: InferenceCall, request: OpenAiRequest, sender: Sender) -> None:
        form = Form(call, request.model, chat=self._chat)
        answer = self._pipeline.answer(call, request.question)
        async with contextlib.aclosing(answer) as pieces:
            if request.stream:
                async with kept_alive(sender):
                    await _stream(request, form, pieces, sender)
            else:
                await _whole(call, form, pieces, sender)


async def _whole(
    call: InferenceCall, form: Form, pieces: AsyncIterator[AnswerPiece], sender: Sender
) -> None:
    text: list[str] = []
    async for piece in pieces:
        text.append(piece.text)
        if piece.finish:
            headers = {"x-continuations": str(call.continuations)}
            await sender.whole(200, form.whole("".join(text), piece.finish), headers)
            return


async def _stream(
    request: OpenAiRequest, form: Form, pieces: AsyncIterator[AnswerPiece], sender: Sender
) -> None:
    async for piece in pieces:
        data = form.piece(piece.text, piece.finish)
        if not sender.begun:
            await sender.begin(200, "text/event-stream", {"cache-control": "no-store"})
            data = form.first() + data
        if piece.finish:
            data += form.numbers() if request.include_usage else b""
            await sender.send(data + answers.DONE, last=True)
            return
        if data:
            await sender.send(data)


def _source(http: HttpRequest) -> str:
    """Where a call came from, as in gRPC: `ipv4:127.0.0.1:51234`, `ipv6:[::1]:51234`."""
    if http.client is None:
        return ""
    host, port = http.client.host, http.client.port
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


async def _gone(receive: Receive) -> None:
    """Return when the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(most: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body has more than {written(most)} bytes: send less text")


def _described(endpoint: str) -> dict[str, object]:
    return {"id": endpoint, "object": "model", "created": 0, "owned_by": endpoint.split("/")[1]}


async def _no_path(_: Visit) -> None:
    raise UnknownPath(f"there is nothing at this path: the API has {_CHAT}, {_TEXT} and {_MODELS}")
