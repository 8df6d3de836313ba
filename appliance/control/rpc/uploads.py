"""UploadService: see `appliance.control.services.data.uploads`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from appliance.api.data.v1 import upload_pb2
from appliance.api.data.v1 import upload_service_pb2 as rpc
from appliance.api.data.v1.upload_service_pb2_grpc import UploadServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.data.uploads import Uploads

Context = grpc.aio.ServicerContext[Any, Any]


class UploadRpc(Servicer, UploadServiceServicer):
    """Translates."""

    def __init__(self, service: Uploads, pool: CallPool, events: Events) -> None:
        super().__init__(pool, events)
        self._service = service

    async def CreateUpload(
        self, request: rpc.CreateUploadRequest, context: Context
    ) -> upload_pb2.Upload:
        """Begins an upload."""
        return await self._run(self._service.create, self.caller, request)

    async def GrantUpload(
        self, request: rpc.GrantUploadRequest, context: Context
    ) -> rpc.GrantUploadResponse:
        """Makes the token with which one upload goes on."""
        return await self._run(self._service.grant, self.caller, request)

    async def UploadPart(
        self, request_iterator: AsyncIterator[rpc.UploadPartRequest], context: Context
    ) -> upload_pb2.UploadedPart:
        """Takes in one part; all of it, or nothing."""
        return await self._take_in(self._service.begin_part, request_iterator)

    async def GetUpload(self, request: rpc.GetUploadRequest, context: Context) -> upload_pb2.Upload:
        """Returns one upload of the caller."""
        return await self._run(self._service.get, self.caller, request.name)

    async def ListUploads(
        self, request: rpc.ListUploadsRequest, context: Context
    ) -> rpc.ListUploadsResponse:
        """Returns one page of the caller's uploads in a project, newest first."""
        return await self._run(self._service.list, self.caller, request)

    async def ListUploadParts(
        self, request: rpc.ListUploadPartsRequest, context: Context
    ) -> rpc.ListUploadPartsResponse:
        """Returns one page of the parts that are there, by number."""
        return await self._run(self._service.list_parts, self.caller, request)

    async def CommitUpload(
        self, request: rpc.CommitUploadRequest, context: Context
    ) -> upload_pb2.Upload:
        """Says which parts the upload consists of."""
        return await self._run(self._service.commit, self.caller, request)

    async def AbortUpload(
        self, request: rpc.AbortUploadRequest, context: Context
    ) -> rpc.AbortUploadResponse:
        """Forgets an upload that is no version yet."""
        return await self._run(self._service.abort, self.caller, request)
