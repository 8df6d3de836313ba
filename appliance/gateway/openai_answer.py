"""Bodies of OpenAI-compatible answers: whole, in pieces, and errors. Pure.

Called by `appliance.gateway.openai`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any

from appliance.api.inference.v1 import generation_pb2
from appliance.core.errors import ApplianceError
from appliance.gateway.pipeline import InferenceCall

DONE = b"data: [DONE]\n\n"
COMMENT = b": waits for a replica\n\n"
"""No event; it says that the connection is alive."""
_FINISH = {
    generation_pb2.FINISH_REASON_STOP: "stop",
    generation_pb2.FINISH_REASON_LENGTH: "length",
}
# gRPC code: HTTP status, type and code of the error object.
_STATUS: Mapping[str, tuple[int, str, str | None]] = {
    "INVALID_ARGUMENT": (400, "invalid_request_error", None),
    "FAILED_PRECONDITION": (400, "invalid_request_error", None),
    "UNAUTHENTICATED": (401, "authentication_error", "invalid_api_key"),
    "PERMISSION_DENIED": (403, "permission_error", None),
    "NOT_FOUND": (404, "invalid_request_error", "model_not_found"),
    "UNIMPLEMENTED": (405, "invalid_request_error", None),
    "RESOURCE_EXHAUSTED": (429, "rate_limit_error", "rate_limit_exceeded"),
    "UNAVAILABLE": (503, "service_unavailable_error", "service_unavailable"),
    "CANCELLED": (499, "server_error", None),
}
_BUG = (500, "server_error", "internal_error")
# Reasons that HTTP has a status of its own for.
_BY_REASON: Mapping[str, tuple[int, str, str | None]] = {
    "BODY_TOO_LARGE": (413, "invalid_request_error", "request_too_large"),
    "BODY_TOO_SLOW": (408, "invalid_request_error", "request_timeout"),
    "CONTEXT_LENGTH_EXCEEDED": (400, "invalid_request_error", "context_length_exceeded"),
    "UNKNOWN_PATH": (404, "invalid_request_error", "unknown_url"),
}


def _kind_of(error: ApplianceError) -> tuple[int, str, str | None]:
    return _BY_REASON.get(error.reason) or _STATUS.get(error.code, _BUG)


def status_of(error: ApplianceError) -> int:
    """HTTP status of an error."""
    return _kind_of(error)[0]


def error_object(error: ApplianceError) -> dict[str, Any]:
    """The body that says what is wrong."""
    _, kind, code = _kind_of(error)
    param = next(iter(error.fields), "model" if code == "model_not_found" else None)
    return object_of(error.message, kind, param, code)


def object_of(
    message: str, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error as clients of this API expect it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_headers(error: ApplianceError) -> dict[str, str]:
    """Headers that go with an error: when to come back, which methods there are, who is sought."""
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if "allow" in error.metadata:
        headers["allow"] = error.metadata["allow"]
    if error.code == "UNAUTHENTICATED":
        headers["www-authenticate"] = "Bearer"
    return headers


def encoded(value: object) -> bytes:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def event(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + encoded(value) + b"\n\n"


def usage_of(call: InferenceCall) -> dict[str, int]:
    """What an answer took."""
    return {
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": call.completion_tokens,
        "total_tokens": call.prompt_tokens + call.completion_tokens,
    }


class Form:
    """How answers to one request look.

    Args:
        chat: a conversation's answer, or a text's continuation.
        model: as the caller wrote it.
    """

    def __init__(self, call: InferenceCall, model: str, *, chat: bool) -> None:
        self._call = call
        self._chat = chat
        kind = "chatcmpl" if chat else "cmpl"
        self._head: dict[str, Any] = {
            "id": f"{kind}-{call.request_id}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, finish: generation_pb2.FinishReason) -> dict[str, Any]:
        """The answer in one body."""
        content = (
            {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        )
        return {
            **self._head,
            "object": "chat.completion" if self._chat else "text_completion",
            "choices": [self._choice(content, finish)],
            "usage": usage_of(self._call),
        }

    def first(self) -> bytes:
        """What begins a stream: who speaks; nothing for a text."""
        if not self._chat:
            return b""
        return self._piece({"delta": {"role": "assistant", "content": ""}}, None)

    def piece(self, text: str, finish: generation_pb2.FinishReason) -> bytes:
        """A piece of a stream; empty when there is nothing to say."""
        if not self._chat:
            return self._piece({"text": text}, finish) if text or finish else b""
        said = self._piece({"delta": {"content": text}}, None) if text else b""
        return said + (self._piece({"delta": {}}, finish) if finish else b"")

    def numbers(self) -> bytes:
        """The piece that says what it took."""
        return event(
            {**self._head, "object": self._kind, "choices": [], "usage": usage_of(self._call)}
        )

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    def _piece(self, content: dict[str, Any], finish: generation_pb2.FinishReason | None) -> bytes:
        choice = self._choice(content, finish)
        return event({**self._head, "object": self._kind, "choices": [choice]})

    def _choice(
        self, content: dict[str, Any], finish: generation_pb2.FinishReason | None
    ) -> dict[str, Any]:
        reason = _FINISH.get(finish) if finish else None
        return {"index": 0, **content, "logprobs": None, "finish_reason": reason}
