"""The OpenAI-compatible front: chat and text completions, and the list of models.

Rules kept here:
* the API key is the appliance's bearer token; who calls is decided before the body is read;
* a body is read up to a limit of bytes and time;
* nothing is sent before the first token, so an error until then has its own status;
* whoever leaves ends the answer at once, streamed or not (who reads nothing is cut off by the
  server, see `http`).

The attacks: a body that never ends or fills the memory; answers that nobody reads. The way of a
call itself is `appliance.gateway.pipeline`. Made by `appliance.gateway.main`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import uuid
from collections.abc import AsyncIterator, Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from appliance.core import log
from appliance.core.errors import ApplianceError, Cancelled, Exhausted, Internal, InvalidInput
from appliance.gateway import openai_answer as answers
from appliance.gateway import openai_request as requests
from appliance.gateway.config import Limits
from appliance.gateway.openai_answer import Form
from appliance.gateway.openai_request import Parse, Request
from appliance.gateway.pipeline import Call, Piece, Pipeline, meaning

logger = logging.getLogger(__name__)

FRONT = "openai"
BODY_SECONDS = 20.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_JSON = "application/json"


class BodyTooLarge(Exhausted):
    """The body has more bytes than a request may."""

    reason = "BODY_TOO_LARGE"


class OpenAi:
    """The routes of the front.

    Args:
        pipeline: takes the calls.
        limits: of bodies.
    """

    def __init__(self, pipeline: Pipeline, limits: Limits) -> None:
        self._pipeline = pipeline
        self._limits = limits

    def application(self) -> Starlette:
        """The ASGI application."""
        chat = Completions(self._pipeline, self._limits, requests.chat, chat=True)
        text = Completions(self._pipeline, self._limits, requests.completion, chat=False)
        return Starlette(
            routes=[
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/models/{model:path}", self._model, methods=["GET"]),
                Route("/v1/chat/completions", chat, methods=["POST"]),
                Route("/v1/completions", text, methods=["POST"]),
            ],
            exception_handlers={HTTPException: _no_route},
        )

    async def _models(self, request: HttpRequest) -> Response:
        try:
            endpoints = self._pipeline.endpoints(request.headers.get("authorization"))
        except ApplianceError as error:
            return _failed(error, uuid.uuid4().hex)
        return _json({"object": "list", "data": [_model(name) for name in endpoints]})

    async def _model(self, request: HttpRequest) -> Response:
        wanted = str(request.path_params["model"])
        try:
            endpoints = self._pipeline.endpoints(request.headers.get("authorization"))
        except ApplianceError as error:
            return _failed(error, uuid.uuid4().hex)
        if requests.endpoint_of(wanted) not in endpoints:
            return await _no_route(request, HTTPException(404))
        return _json({**_model(requests.endpoint_of(wanted)), "id": wanted})


class Completions:
    """An ASGI endpoint that answers one kind of request."""

    def __init__(self, pipeline: Pipeline, limits: Limits, parse: Parse, *, chat: bool) -> None:
        self._pipeline = pipeline
        self._limits = limits
        self._parse = parse
        self._chat = chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request from its head to its last byte."""
        http = HttpRequest(scope)
        asked = http.headers.get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        log.request_id.set(request_id)
        sender = _Sender(send, request_id)
        call = self._pipeline.begin(FRONT, request_id, "", _source(http))
        error: ApplianceError | None = None
        try:
            await self._serve(call, http, receive, sender)
        except ApplianceError as refused:
            error = refused
        except asyncio.CancelledError as ended:
            error = meaning(ended)
            raise
        except Exception as bug:
            logger.exception("a call failed")
            error = Internal(
                "something went wrong in the gateway; its log has the details under request id "
                f"{request_id}"
            )
            error.__cause__ = bug
        finally:
            self._pipeline.end(call, error)
        if error is not None:
            await sender.fail(error)

    async def _serve(
        self, call: Call, http: HttpRequest, receive: Receive, sender: _Sender
    ) -> None:
        authorization = http.headers.get("authorization")
        # First of all who it is: the body of a stranger is not worth reading.
        call.principal, _ = self._pipeline.identify(authorization)
        body = requests.document(await self._body(http, receive))
        call.endpoint = requests.endpoint_of(requests.model_of(body))
        self._pipeline.admit(call, authorization)
        request = self._parse(body)
        work = asyncio.create_task(self._answer(call, request, sender))
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
        """The body. Raises BodyTooLarge, InvalidInput."""
        most = self._limits.body_bytes
        told = http.headers.get("content-length", "0")
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                more = not (told.isdigit() and int(told) > most)
                if not more:
                    raise _too_large(most)
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Cancelled("the caller left")
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise _too_large(most)
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise InvalidInput("the body did not come in time") from error
        return bytes(body)

    async def _answer(self, call: Call, request: Request, sender: _Sender) -> None:
        form = Form(call, request.model, chat=self._chat)
        answer = self._pipeline.answer(call, request.question)
        async with contextlib.aclosing(answer) as pieces:
            if request.stream:
                await _stream(request, form, pieces, sender)
            else:
                await _whole(call, form, pieces, sender)


async def _whole(call: Call, form: Form, pieces: AsyncIterator[Piece], sender: _Sender) -> None:
    text: list[str] = []
    async for piece in pieces:
        text.append(piece.text)
        if piece.finish:
            body = answers.encoded(form.whole("".join(text), piece.finish))
            await sender.begin(200, _JSON, {"x-continuations": str(call.continuations)}, len(body))
            await sender.send(body, last=True)
            return


async def _stream(
    request: Request, form: Form, pieces: AsyncIterator[Piece], sender: _Sender
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


class _Sender:
    """Sends one response."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.begun = False
        self._streaming = False

    async def begin(
        self, status: int, kind: str, headers: Mapping[str, str], length: int | None = None
    ) -> None:
        self.begun = True
        self._streaming = length is None
        every = {"content-type": kind, "x-request-id": self._request_id, **headers}
        if length is not None:
            every["content-length"] = str(length)
        raw = [(key.encode(), value.encode()) for key, value in every.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def send(self, data: bytes, *, last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    async def fail(self, error: ApplianceError) -> None:
        """Tell an error: as a response, or as the last event of a stream that has begun."""
        if isinstance(error, Cancelled):
            return
        body = answers.error_object(error)
        with contextlib.suppress(OSError):
            if self.begun:
                if self._streaming:
                    await self.send(answers.event(body), last=True)
                return
            data = answers.encoded(body)
            status = 413 if isinstance(error, BodyTooLarge) else answers.status_of(error)
            await self.begin(status, _JSON, answers.error_headers(error), len(data))
            await self.send(data, last=True)


def _source(http: HttpRequest) -> str:
    """Where a call came from, as gRPC writes it: `ipv4:127.0.0.1:51234`."""
    if http.client is None:
        return ""
    host, port = http.client.host, http.client.port
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


async def _gone(receive: Receive) -> None:
    """Return when the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(most: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body has more than {most} bytes: send less text")


def _model(endpoint: str) -> dict[str, object]:
    return {"id": endpoint, "object": "model", "created": 0, "owned_by": endpoint.split("/")[1]}


def _json(value: object, status: int = 200) -> Response:
    return Response(answers.encoded(value), status, media_type=_JSON)


def _failed(error: ApplianceError, request_id: str) -> Response:
    headers = {"x-request-id": request_id, **answers.error_headers(error)}
    body = answers.encoded(answers.error_object(error))
    return Response(body, answers.status_of(error), headers, _JSON)


async def _no_route(_: HttpRequest, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    words = {404: "there is no such model or path here", 405: "this path takes another method"}
    message = words.get(status, "the request cannot be served")
    body = {
        "error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    }
    return _json(body, status)
