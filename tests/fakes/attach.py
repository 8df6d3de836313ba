"""A gateway's side of the stream to a worker, for tests."""

from __future__ import annotations

import asyncio
from typing import Any

from appliance.api.inference.v1 import generation_pb2, worker_service_pb2


def submit(
    identifier: int, prompt: list[int], ends: list[int] | None = None, **sampling: Any
) -> worker_service_pb2.AttachRequest:
    return worker_service_pb2.AttachRequest(
        submit=worker_service_pb2.Submit(
            id=identifier,
            prompt_token_ids=prompt,
            end_token_ids=ends or [],
            sampling=generation_pb2.Sampling(**sampling),
        )
    )


async def answers(
    call: Any, count: int, seconds: float = 60
) -> tuple[dict[int, list[int]], dict[int, int], int]:
    """Tokens and finish reason of `count` answers, and the messages they came in."""
    tokens: dict[int, list[int]] = {}
    finished: dict[int, int] = {}
    messages = 0
    async with asyncio.timeout(seconds):
        while len(finished) < count:
            message = await call.read()
            messages += bool(message.outputs)
            for output in message.outputs:
                tokens.setdefault(output.id, []).extend(output.token_ids)
                if output.finish_reason:
                    finished[output.id] = output.finish_reason
    return tokens, finished, messages


async def beat(call: Any) -> worker_service_pb2.Heartbeat:
    """The next heartbeat."""
    while True:
        message = await call.read()
        if message.HasField("heartbeat"):
            return message.heartbeat
