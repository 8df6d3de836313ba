"""NodeService: see `appliance.control.services.system.nodes` and `fleet.enrolment`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from appliance.api.nodes.v1 import node_pb2
from appliance.api.nodes.v1 import node_service_pb2 as rpc
from appliance.api.nodes.v1.node_service_pb2_grpc import NodeServiceServicer
from appliance.control.events import NODES, QUEUE, ROUTING, Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.fleet.enrolment import Enrolment
from appliance.control.services.system.nodes import Nodes

Context = grpc.aio.ServicerContext[Any, Any]


class NodeRpc(Servicer, NodeServiceServicer):
    """Translates."""

    def __init__(
        self, service: Nodes, enrolment: Enrolment, pool: CallPool, events: Events
    ) -> None:
        super().__init__(pool, events)
        self._service = service
        self._enrolment = enrolment

    async def GetNode(self, request: rpc.GetNodeRequest, context: Context) -> node_pb2.Node:
        """Returns one node."""
        return await self._run(self._service.get, self.caller, request.name)

    async def ListNodes(
        self, request: rpc.ListNodesRequest, context: Context
    ) -> rpc.ListNodesResponse:
        """Returns one page of nodes."""
        return await self._run(self._service.list, self.caller, request)

    async def CreateJoinToken(
        self, request: rpc.CreateJoinTokenRequest, context: Context
    ) -> rpc.CreateJoinTokenResponse:
        """Makes a token with which one server may join once."""
        return await self._run(self._enrolment.create_join_token, self.caller, request)

    async def ListJoinTokens(
        self, request: rpc.ListJoinTokensRequest, context: Context
    ) -> rpc.ListJoinTokensResponse:
        """Returns one page of the join tokens that can still be used."""
        return await self._run(self._enrolment.list_join_tokens, self.caller, request)

    async def RevokeJoinToken(
        self, request: rpc.RevokeJoinTokenRequest, context: Context
    ) -> rpc.RevokeJoinTokenResponse:
        """Ends a join token."""
        return await self._run(self._enrolment.revoke_join_token, self.caller, request)

    async def EvictNode(self, request: rpc.EvictNodeRequest, context: Context) -> node_pb2.Node:
        """Refuses the node from now on."""
        return await self._run(self._service.evict, self.caller, request)

    async def WatchNode(
        self, request: rpc.WatchNodeRequest, context: Context
    ) -> AsyncIterator[node_pb2.Node]:
        """Streams the node, with what runs on it, now and each time it changes."""
        caller = self.caller

        def read() -> node_pb2.Node:
            return self._service.get(caller, request.name)

        wakes = (NODES, QUEUE, ROUTING)
        async for node in self._follow(request.name, read, lambda _: False, *wakes):
            yield node

    async def CordonNode(self, request: rpc.CordonNodeRequest, context: Context) -> node_pb2.Node:
        """Places nothing new on the node."""
        return await self._run(self._service.cordon, self.caller, request)

    async def UncordonNode(
        self, request: rpc.UncordonNodeRequest, context: Context
    ) -> node_pb2.Node:
        """Lets work come to the node again."""
        return await self._run(self._service.uncordon, self.caller, request)

    async def DrainNode(self, request: rpc.DrainNodeRequest, context: Context) -> node_pb2.Node:
        """Cordons the node, and lets what runs on it go on elsewhere."""
        return await self._run(self._service.drain, self.caller, request)

    async def DeleteNode(
        self, request: rpc.DeleteNodeRequest, context: Context
    ) -> rpc.DeleteNodeResponse:
        """Deletes a node on which nothing runs."""
        return await self._run(self._service.delete, self.caller, request)
