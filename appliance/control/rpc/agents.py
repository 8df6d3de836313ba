"""AgentService: see `appliance.control.services.agents`, `release` and `enrolment`."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.api.agent.v1.agent_service_pb2_grpc import AgentServiceServicer
from appliance.control.events import Events
from appliance.control.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.agents import Agents
from appliance.control.services.enrolment import Enrolment
from appliance.control.services.fleet import Session
from appliance.control.services.release import Release
from appliance.core.errors import InvalidInput

Context = grpc.aio.ServicerContext[Any, Any]


class AgentRpc(Servicer, AgentServiceServicer):
    """Translates."""

    def __init__(
        self,
        agents: Agents,
        release: Release,
        enrolment: Enrolment,
        pool: CallPool,
        events: Events,
    ) -> None:
        super().__init__(pool, events)
        self._agents = agents
        self._release = release
        self._enrolment = enrolment
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._releases: dict[tuple[str, bytes], asyncio.Future[rpc.ReleaseKeysResponse]] = {}

    async def Connect(
        self, request_iterator: AsyncIterator[rpc.ConnectRequest], context: Context
    ) -> AsyncIterator[rpc.ConnectResponse]:
        """The agent's stream: heartbeats go up, orders come down."""
        caller = self.caller
        first = await anext(request_iterator, None)
        if first is None:
            raise InvalidInput("the first message of an agent must be its hello")
        session = Session(self._agents.facts_of(caller, first))
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
        """Takes in what happened to work, one report after the other."""
        node = self.caller.principal.id
        async for report in request_iterator:
            self._agents.check_connected(node)
            await self._take(node, report)
            yield rpc.ReportResponse(number=report.number)

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

    def _released(self, key: tuple[str, bytes], done: asyncio.Future[Any]) -> None:
        self._releases.pop(key, None)
        if not done.cancelled():
            done.exception()  # whoever still waits gets it; nobody else is told of it

    async def RenewCertificate(
        self, request: rpc.RenewCertificateRequest, context: Context
    ) -> rpc.RenewCertificateResponse:
        """Replaces the node's certificate before it ends."""
        return await self._run(self._enrolment.renew, self.caller, request)

    async def _read(self, reports: AsyncIterator[rpc.ConnectRequest], session: Session) -> None:
        """Take in heartbeats until the agent stops sending; then end the session."""
        node = session.facts.node
        try:
            async for said in reports:
                if said.HasField("heartbeat"):
                    await self._look_in(
                        self._pool.agents, self._agents.heartbeat, node, said.heartbeat
                    )
                else:  # from an agent of release 0.1.0
                    await self._take(node, said)
        finally:
            session.close()

    async def _take(self, node: str, report: rpc.ReportRequest | rpc.ConnectRequest) -> None:
        """Take in a report: of each node one at a time, however many streams it has."""
        async with self._turns.setdefault(node, asyncio.Lock()):
            await self._look_in(self._pool.reports, self._agents.report, node, report)
