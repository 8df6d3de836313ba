"""DownloadService: see `appliance.control.services.data.downloads`."""

from __future__ import annotations

from typing import Any

import grpc.aio

from appliance.api.data.v1 import download_service_pb2 as rpc
from appliance.api.data.v1.download_service_pb2_grpc import DownloadServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.giving import STALL_SECONDS, GivesOut
from appliance.control.rpc.pools import CallPool
from appliance.control.services.data.downloads import Downloads

Context = grpc.aio.ServicerContext[Any, Any]


class DownloadRpc(GivesOut, DownloadServiceServicer):
    """Translates."""

    def __init__(
        self,
        service: Downloads,
        pool: CallPool,
        events: Events,
        *,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        super().__init__(pool, events, stall_seconds=stall_seconds)
        self._service = service

    async def DownloadModelVersion(
        self, request: rpc.DownloadModelVersionRequest, context: Context
    ) -> None:
        """Streams the files of a version of a model."""
        await self._give_out(context, self._service.model, request)

    async def DownloadDatasetVersion(
        self, request: rpc.DownloadDatasetVersionRequest, context: Context
    ) -> None:
        """Streams the files of a version of a dataset."""
        await self._give_out(context, self._service.dataset, request)
