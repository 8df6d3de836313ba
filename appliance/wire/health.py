"""gRPC health of one listener: answered in full load, and no way to hold places.

Rules kept here:
* the names that are known are the listener's services and the empty one for all of them (Envoy and
  grpc_health_probe ask by name);
* a check needs its message within seconds; checks and watches have places of their own, a share for
  each source, so that neither strangers at the other calls stop health nor watchers anything else;
  when they are full, the oldest of the source that holds the most ends for who comes;
* nothing about who asked is recorded: health says no more than whether the server serves;
* a watcher who takes no message holds up nobody: neither other watchers nor a change of state.

The attack: health needs no identity, so whoever may connect opens watches and holds them. The
servicer of `grpc_health` sends under a lock that a change needs too, so that one watcher who reads
nothing keeps a server from saying that it stops; its messages are used, its servicer is not.
Registered by `appliance.wire.server`; the door lets it pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, cast

import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from appliance.core.errors import ApplianceError, NotFound
from appliance.wire.admission import StrangerSlots, source_of
from appliance.wire.handlers import Context, Handler, Incoming, receiving_bytes
from appliance.wire.rules import HEALTH_SERVICE
from appliance.wire.sending import end_with, send
from appliance.wire.status import to_status

FIRST_MESSAGE_SECONDS = 5.0
CHECKS, CHECKS_PER_SOURCE = 256, 16
WATCHES, WATCHES_PER_SOURCE = 256, 16


class Health:
    """Says whether the services of one listener can do their work.

    Args:
        services: full names of what the listener serves.
    """

    def __init__(self, services: Iterable[str] = ()) -> None:
        self._states: dict[str, int] = dict.fromkeys(("", *services), HealthCheckResponse.SERVING)
        self._ending = False
        self._changed = asyncio.Event()
        """Set, and replaced, at each change."""
        self._checks = StrangerSlots(CHECKS, CHECKS_PER_SOURCE)
        self._watches = StrangerSlots(WATCHES, WATCHES_PER_SOURCE)

    def register(self, server: grpc.aio.Server) -> None:
        """Answer for health on a server.

        As methods of their own: gRPC takes their calls beside those that wait for other methods.
        """
        methods = (("Check", self._check, False), ("Watch", self._watch, True))
        handlers: dict[str, Handler] = {
            name: receiving_bytes(
                behaviour, streams=streams, serializer=HealthCheckResponse.SerializeToString
            )
            for name, behaviour, streams in methods
        }
        # grpc-stubs is older than this method.
        cast("Any", server).add_registered_method_handlers(HEALTH_SERVICE.strip("/"), handlers)

    def set(self, service: str, *, serving: bool) -> None:
        """Say whether a service serves; the empty name says it for every service here.

        Nothing happens any more after `end`.
        """
        if self._ending:
            return
        state = HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
        self._states.update(dict.fromkeys([service] if service else self._states, state))
        self._changed.set()
        self._changed = asyncio.Event()

    def end(self) -> None:
        """Say from now on that nothing serves."""
        self.set("", serving=False)
        self._ending = True

    async def _check(self, raw: AsyncIterator[bytes], context: Context) -> object:
        return await self._answer("Check", self._checks, self._state, raw, context)

    async def _watch(self, raw: AsyncIterator[bytes], context: Context) -> object:
        return await self._answer("Watch", self._watches, self._states_of, raw, context)

    async def _state(self, request: HealthCheckRequest, _: Context) -> HealthCheckResponse:
        """The state of a service now. Raises NotFound for one that is not here."""
        if request.service not in self._states:
            raise NotFound("no service of that name is served here")
        return HealthCheckResponse(status=self._states[request.service])

    async def _states_of(self, request: HealthCheckRequest, context: Context) -> None:
        """The state of a service, and each new one, until the call is cancelled."""
        sent: int | None = None
        while True:
            changed = self._changed
            state = self._states.get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)
            if state != sent:
                await send(context, HealthCheckResponse(status=state))
                sent = state
            await changed.wait()

    async def _answer(
        self,
        name: str,
        places: StrangerSlots,
        behaviour: Callable[[Any, Context], Awaitable[object]],
        raw: AsyncIterator[bytes],
        context: Context,
    ) -> object:
        incoming = Incoming(name, raw, HealthCheckRequest.FromString)
        try:
            async with asyncio.timeout(None) as until, self._place(places, context, until):
                return await behaviour(await incoming.only(FIRST_MESSAGE_SECONDS), context)
        except TimeoutError:
            await end_with(context, to_status(places.refusal(), uuid.uuid4().hex))
        except ApplianceError as error:
            await end_with(context, to_status(error, uuid.uuid4().hex))
        finally:
            await incoming.close()
        return None

    @contextlib.asynccontextmanager
    async def _place(
        self, places: StrangerSlots, context: Context, until: asyncio.Timeout
    ) -> AsyncIterator[None]:
        """A place until the call ends; it may be ended for another one's."""
        now = asyncio.get_running_loop().time
        place = places.enter(source_of(context.peer()), lambda: until.reschedule(now()))
        try:
            yield
        finally:
            places.leave(place)
