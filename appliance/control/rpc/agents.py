"""AgentService: see `appliance.control.services.agent.agents`, `release` and `enrolment`."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc.aio

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.api.agent.v1.agent_service_pb2_grpc import AgentServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.arrivals import Arrivals, ReportT, ReportTurn
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.agent.agents import Agents
from appliance.control.services.agent.release import Release
from appliance.control.services.fleet.connected_agents import AgentSession
from appliance.control.services.fleet.enrolment import Enrolment
from appliance.control.services.fleet.log_feeds import LogFeeds
from appliance.core.errors import InvalidInput

Context = grpc.aio.ServicerContext[Any, Any]


class AgentRpc(Servicer, AgentServiceServicer):
    """Translates."""

    def __init__(  # noqa: PLR0913  # the parts of the control plane it speaks for
        self,
        agents: Agents,
        release: Release,
        enrolment: Enrolment,
        feeds: LogFeeds,
        pool: CallPool,
        events: Events,
    ) -> None:
        super().__init__(pool, events)
        self._agents = agents
        self._release = release
        self._enrolment = enrolment
        self._feeds = feeds
        # One for each node that has reported; those that were evicted too.
        self._turns: defaultdict[str, ReportTurn] = defaultdict(ReportTurn)
        self._releases: dict[tuple[str, bytes], asyncio.Future[rpc.ReleaseKeysResponse]] = {}

    async def Connect(
        self, request_iterator: AsyncIterator[rpc.ConnectRequest], context: Context
    ) -> AsyncIterator[rpc.ConnectResponse]:
        """The agent's stream: heartbeats go up, orders come down."""
        caller = self.caller
        first = await anext(request_iterator, None)
        if first is None:
            raise InvalidInput("the first message of an agent must be its hello")
        session = AgentSession(self._agents.facts_of(caller, first))
        reader: asyncio.Task[None] | None = None
        try:
            await self._run_in(
                self._pool.reports, self._agents.connect, caller, first.hello, session
            )
            reader = asyncio.create_task(self._read(request_iterator, session))
            while (order := await session.next()) is not None:
                yield order
            if reader.done():
                # What made the reader end is the stream's error.
                reader.result()
        finally:
            if reader is not None:
                reader.cancel()
            await self._run_in(self._pool.reports, self._agents.leave, session)

    async def Report(
        self, request_iterator: AsyncIterator[rpc.ReportRequest], context: Context
    ) -> AsyncIterator[rpc.ReportResponse]:
        """Takes in what happened to work, in its order, what has arrived together."""
        node, arrivals = self.caller.principal.id, Arrivals[rpc.ReportRequest]()
        reader = asyncio.create_task(arrivals.read(request_iterator))
        try:
            while await arrivals.some():
                self._agents.check_connected(node)
                lot = await self._take(node, arrivals)
                yield rpc.ReportResponse(number=lot[-1].number)
            await reader
        finally:
            reader.cancel()

    async def ReleaseKeys(
        self, request: rpc.ReleaseKeysRequest, context: Context
    ) -> rpc.ReleaseKeysResponse:
        """Returns the data keys of work that is leased to the calling node now.

        It may have to wait for the object store, longer than its caller does: who asks again joins
        what is under way, and no call waits for it that nobody waits for.
        """
        key = (self.caller.principal.id, request.SerializeToString(deterministic=True))
        release = self._releases.get(key)
        if release is None:
            release = asyncio.ensure_future(
                self._run_in(self._pool.storage, self._release.keys, self.caller, request)
            )
            self._releases[key] = release
            release.add_done_callback(lambda done: self._released(key, done))
        return await asyncio.shield(release)

    async def SendLog(
        self, request_iterator: AsyncIterator[rpc.SendLogRequest], context: Context
    ) -> rpc.SendLogResponse:
        """Takes the lines of a work, until nobody reads them any more."""
        first = await anext(request_iterator, None)
        read = "" if first is None else first.read
        with self._feeds.receiving(self.caller.principal.id, read) as found:
            if first is None or found is None:
                return rpc.SendLogResponse()
            feed, over = found
            feed.take(first)

            async def read_all() -> None:
                async for message in request_iterator:
                    if over.is_set():
                        return
                    feed.take(message)

            reading = asyncio.create_task(read_all())
            ending = asyncio.create_task(over.wait())
            try:
                await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    reading.result()
            finally:
                reading.cancel()
                ending.cancel()
        return rpc.SendLogResponse()

    def _released(self, key: tuple[str, bytes], done: asyncio.Future[Any]) -> None:
        self._releases.pop(key, None)
        if not done.cancelled():
            done.exception()  # whoever still waits gets it; nobody else is told of it

    async def RenewCertificate(
        self, request: rpc.RenewCertificateRequest, context: Context
    ) -> rpc.RenewCertificateResponse:
        """Replaces the node's certificate before it ends."""
        return await self._run(self._enrolment.renew, self.caller, request)

    async def _read(self, said: AsyncIterator[rpc.ConnectRequest], session: AgentSession) -> None:
        """Take in heartbeats until the agent stops sending; then end the session."""
        node, arrivals = session.facts.node, Arrivals[rpc.ConnectRequest]()
        taking = asyncio.create_task(self._take_all(node, arrivals))
        try:
            async for message in said:
                if message.HasField("heartbeat"):
                    await self._look_in(
                        self._pool.agents, self._agents.heartbeat, node, message.heartbeat
                    )
                else:  # from an agent of release 0.1.0
                    await arrivals.put(message)
                if taking.done():
                    break
            arrivals.end()
            await taking
        finally:
            taking.cancel()
            session.close()

    async def _take_all(self, node: str, arrivals: Arrivals[ReportT]) -> None:
        while await arrivals.some():
            await self._take(node, arrivals)

    async def _take(self, node: str, arrivals: Arrivals[ReportT]) -> Sequence[ReportT]:
        """Take in what has arrived: of each node one lot at a time, however many its streams."""

        async def work(lot: Sequence[ReportT]) -> None:
            await self._look_in(self._pool.reports, self._agents.take, node, lot)

        return await self._turns[node].take(arrivals, work)
