"""What is sent to a caller: messages, so that the stream can still be ended, and the status.

When the task that waits in gRPC's `write` is cancelled, gRPC (1.7x, asyncio) keeps the message and
loses the status that is sent after it: the caller never hears that the call has ended. So a message
that is on its way is finished before its task is. Called by the door, by health and by
the worker's service.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect

import grpc

from appliance.wire.handlers import Behaviour, Context

GIVE_UP_SECONDS = 1.0
"""With the time between two judgements of a stream this makes five seconds at most."""
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
        await asyncio.wait({sending}, timeout=give_up)
        sending.cancel()
        if sending.done() and not sending.cancelled():
            # The call is over either way; why the message did not arrive interests nobody.
            sending.exception()
        raise


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
    """Let a call end with a status as soon as its behaviour returns.

    Instead of gRPC's `abort`, whose exception is kept by the call that it goes through: such a
    circle stays until all memory is searched for circles, and under a flood of refused calls these
    searches stopped the control plane for 200 ms at a time.

    Waits a moment, in which a caller who has left already is noticed: gRPC loses about a kilobyte
    for each call whose caller leaves while its status is being sent.
    """
    await asyncio.sleep(LEAVE_SECONDS)
    context.set_code(status.code)
    context.set_details(status.details)
    context.set_trailing_metadata(status.trailing_metadata)
