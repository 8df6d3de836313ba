"""The gRPC front: the door that admits calls of InferenceService, and the service behind it.

Rules kept here: who calls is decided in the door, before a message is read, and again every few
seconds while the answer streams; each call is ended once, with its outcome; the log hears nothing
of the text that a fault of ours was about. The way of a call itself is
`appliance.gateway.pipeline`.

Called by gRPC; constructed by `appliance.gateway.main`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from typing import Any

import grpc.aio

from appliance.api.inference.v1 import inference_service_pb2
from appliance.api.inference.v1.inference_service_pb2_grpc import InferenceServiceServicer
from appliance.core.errors import ApplianceError, Internal, Unauthenticated
from appliance.core.identity import Principal, parse_name
from appliance.gateway import pipeline as way
from appliance.gateway.config import GatewayConfig
from appliance.gateway.hidden_errors import fault
from appliance.gateway.pipeline import InferencePipeline
from appliance.gateway.questions import Question
from appliance.gateway.usage import INFERENCE
from appliance.wire.admission import CallerLimits
from appliance.wire.budgets import Admission
from appliance.wire.door import UNKNOWN, Call, Door
from appliance.wire.metrics import CallMetrics
from appliance.wire.rules import AccessRule

FRONT = "grpc"

Context = grpc.aio.ServicerContext[Any, Any]

_current: ContextVar[way.InferenceCall] = ContextVar("inference_call")


def admission_of(config: GatewayConfig) -> Admission:
    """Places of this front; what a caller may have in work is counted by the pipeline."""
    limits = config.limits
    callers = CallerLimits(
        calls=2 * limits.calls_per_caller,
        changes_per_second=limits.calls_per_second,
        change_burst=limits.call_burst,
    )
    return Admission(config.strangers, callers)


class GatewayDoor(Door[way.InferenceCall]):
    """Admits callers of inference by the gateway's view."""

    def __init__(
        self,
        rules: Mapping[str, AccessRule],
        pipeline: InferencePipeline,
        metrics: CallMetrics | None = None,
        admission: Admission | None = None,
    ) -> None:
        super().__init__(rules, metrics=metrics, admission=admission)
        self._pipeline = pipeline

    async def identify(self, call: Call) -> Principal:
        """Who calls, as the view says; no message of the call was read."""
        begun = self._begin(call)
        _current.set(begun)
        begun.principal, _ = self._pipeline.identify(
            call.metadata.get("authorization"), begun.source
        )
        return parse_name(begun.principal)

    async def enter(self, call: Call) -> way.InferenceCall:
        """Decide, and take a slot."""
        begun = _current.get()
        begun.endpoint = call.resource
        self._pipeline.admit(begun, call.metadata.get("authorization"))
        return begun

    async def recheck(self, call: Call, entered: way.InferenceCall) -> None:
        """Judge again."""
        del call  # the pipeline's has all
        self._pipeline.recheck(entered)

    async def leave(
        self, call: Call, entered: way.InferenceCall | None, error: ApplianceError | None
    ) -> None:
        """End the call; one that never came to `enter` is reported too."""
        begun = entered or _current.get(None) or self._begin(call)
        self._pipeline.end(begun, error)

    def fault(self, call: Call, bug: Exception) -> Internal:
        """As everywhere in the gateway: a bug's words may be a caller's text, and stay unsaid."""
        return fault(bug, call.request_id)

    def _begin(self, call: Call) -> way.InferenceCall:
        method = INFERENCE if call.rule.method in self.rules else UNKNOWN
        return self._pipeline.begin(FRONT, call.request_id, call.resource, call.peer, method)


class InferenceService(InferenceServiceServicer):
    """Translates between gRPC's messages and the pipeline's."""

    def __init__(self, pipeline: InferencePipeline) -> None:
        self._pipeline = pipeline

    async def Generate(  # noqa: N802 - the proto names it
        self, request: inference_service_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[inference_service_pb2.GenerateResponse]:
        """Streams an answer as it is made."""
        call = _current.get(None)
        if call is None:
            raise Unauthenticated("the call did not come through the door")
        answer = self._pipeline.answer(call, question_of(request))
        async with contextlib.aclosing(answer) as pieces:
            async for piece in pieces:
                response = inference_service_pb2.GenerateResponse(
                    text=piece.text, token_ids=piece.tokens, finish_reason=piece.finish
                )
                if piece.finish:
                    response.totals.CopyFrom(_totals(call))
                    context.set_trailing_metadata(
                        (
                            ("x-request-id", call.request_id),
                            ("x-continuations", str(call.continuations)),
                        )
                    )
                yield response


def question_of(request: inference_service_pb2.GenerateRequest) -> Question:
    """What a request asks."""
    if request.WhichOneof("input") == "chat":
        messages = [
            {"role": message.role, "content": message.content} for message in request.chat.messages
        ]
        return Question(request.sampling, messages=messages)
    if request.WhichOneof("input") == "prompt":
        return Question(request.sampling, text=request.prompt)
    return Question(request.sampling)


def _totals(call: way.InferenceCall) -> inference_service_pb2.Totals:
    return inference_service_pb2.Totals(
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        continuations=call.continuations,
    )
