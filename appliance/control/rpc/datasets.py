"""DatasetService: see `appliance.control.services.data.datasets`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from appliance.api.data.v1 import dataset_pb2, tombstone_pb2
from appliance.api.data.v1 import dataset_service_pb2 as rpc
from appliance.api.data.v1.dataset_service_pb2_grpc import DatasetServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.data.datasets import Datasets

Context = grpc.aio.ServicerContext[Any, Any]


class DatasetRpc(Servicer, DatasetServiceServicer):
    """Translates."""

    def __init__(self, service: Datasets, pool: CallPool, events: Events) -> None:
        super().__init__(pool, events)
        self._service = service

    async def GetDataset(
        self, request: rpc.GetDatasetRequest, context: Context
    ) -> dataset_pb2.Dataset:
        """Returns one dataset."""
        return await self._run(self._service.get, self.caller, request.name)

    async def ListDatasets(
        self, request: rpc.ListDatasetsRequest, context: Context
    ) -> rpc.ListDatasetsResponse:
        """Returns one page of datasets."""
        return await self._run(self._service.list, self.caller, request)

    async def CreateDataset(
        self, request: rpc.CreateDatasetRequest, context: Context
    ) -> dataset_pb2.Dataset:
        """Creates an empty dataset."""
        return await self._run(self._service.create, self.caller, request)

    async def UploadDatasetVersion(
        self, request_iterator: AsyncIterator[rpc.UploadDatasetVersionRequest], context: Context
    ) -> dataset_pb2.DatasetVersion:
        """Takes in documents as a new sealed version; all of them, or nothing."""
        return await self._take_in(self._service.begin_upload, request_iterator)

    async def GetDatasetVersion(
        self, request: rpc.GetDatasetVersionRequest, context: Context
    ) -> dataset_pb2.DatasetVersion:
        """Returns one version."""
        return await self._run(self._service.get_version, self.caller, request.name)

    async def ListDatasetVersions(
        self, request: rpc.ListDatasetVersionsRequest, context: Context
    ) -> rpc.ListDatasetVersionsResponse:
        """Returns one page of versions, newest first."""
        return await self._run(self._service.list_versions, self.caller, request)

    async def GetPrepareReport(
        self, request: rpc.GetPrepareReportRequest, context: Context
    ) -> dataset_pb2.PrepareReport:
        """Returns the report of the prepare job that made a version."""
        return await self._run_in(
            self._pool.storage, self._service.prepare_report, self.caller, request.name
        )

    async def UpdateDataset(
        self, request: rpc.UpdateDatasetRequest, context: Context
    ) -> dataset_pb2.Dataset:
        """Changes the description."""
        return await self._run(self._service.update, self.caller, request)

    async def DeleteDataset(
        self, request: rpc.DeleteDatasetRequest, context: Context
    ) -> tombstone_pb2.Deletion:
        """Deletes a dataset with all its versions."""
        return await self._run(self._service.delete, self.caller, request)

    async def DeleteDatasetVersion(
        self, request: rpc.DeleteDatasetVersionRequest, context: Context
    ) -> tombstone_pb2.Deletion:
        """Deletes one version."""
        return await self._run(self._service.delete_version, self.caller, request)
