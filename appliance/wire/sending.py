"""What is sent to a caller: messages, so that the stream can still be ended, and the status.

When the task that waits in gRPC's `write` is cancelled, gRPC (1.85, asyncio) keeps the message and
loses the status that is sent after it: the caller never hears that the call has ended. So a message
that is on its way is finished before its task is. Called by the door, by health and by the worker's
service.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from typing import Any, cast

import grpc
import grpc.aio

from appliance.wire.handlers import Behaviour, Context

GIVE_UP_SECONDS = 1.0
"""Added to the time between two judgements of a stream: what was revoked ends in five seconds."""
LEAVE_SECONDS = 0.001
"""Long enough for a reset that came together with its call."""


async def send(context: Context, message: object, *, give_up: float = GIVE_UP_SECONDS) -> None:
    """Send a message; when cancelled, wait for it first.

    Args:
        context: of the call.
        message: of the call's type of answer.
        give_up: seconds after which a cancelled sender waits no longer, for a caller who does not
            take the message. Such a caller may miss the status.
    """
    sending = asyncio.ensure_future(context.write(message))
    try:
        await asyncio.shield(sending)
    except asyncio.CancelledError:
        # The call is over either way; why the message did not arrive interests nobody.
        sending.add_done_callback(forget)
        await asyncio.wait({sending}, timeout=give_up)
        raise
    finally:
        sending.cancel()
        # It keeps its error, whose frames keep it.
        del sending


def forget(ended: asyncio.Future[Any]) -> None:
    """Let nobody hear of the error of a task that nobody waits for."""
    if not ended.cancelled():
        ended.exception()


async def serve(behaviour: Behaviour, incoming: object, context: Context) -> object:
    """What the service answers; a stream of answers is sent from here."""
    answer = behaviour(incoming, context)
    if not inspect.isasyncgen(answer):
        return await answer
    async with contextlib.aclosing(answer):
        async for message in answer:
            await send(context, message)
    return None


async def end_with(context: Context, status: grpc.Status) -> None:
    """Send the status that ends a call; the behaviour returns afterwards.

    gRPC raises an error when it has sent it, and keeps it in the call that the error goes through.
    Such a circle stays until all memory is searched for circles, and under a flood of refused calls
    these searches stopped the control plane for 200 ms at a time: so the error ends here, without
    the frames that it came through.

    Waits a moment before, in which a caller who has left already is noticed: gRPC loses about a
    kilobyte for each call whose caller leaves while its status is being sent.
    """
    await asyncio.sleep(LEAVE_SECONDS)
    try:
        # grpc-stubs is older than this method of the asyncio context.
        await cast("Any", context).abort_with_status(status)
    except grpc.aio.AbortError as sent:
        sent.__traceback__ = sent.__context__ = None
