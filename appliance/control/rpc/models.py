"""ModelService: see `appliance.control.services.data.models`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from appliance.api.data.v1 import tombstone_pb2
from appliance.api.models.v1 import model_pb2
from appliance.api.models.v1 import model_service_pb2 as rpc
from appliance.api.models.v1.model_service_pb2_grpc import ModelServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.data.models import Models

Context = grpc.aio.ServicerContext[Any, Any]


class ModelRpc(Servicer, ModelServiceServicer):
    """Translates."""

    def __init__(self, service: Models, pool: CallPool, events: Events) -> None:
        super().__init__(pool, events)
        self._service = service

    async def GetModel(self, request: rpc.GetModelRequest, context: Context) -> model_pb2.Model:
        """Returns one model."""
        return await self._run(self._service.get, self.caller, request.name)

    async def ListModels(
        self, request: rpc.ListModelsRequest, context: Context
    ) -> rpc.ListModelsResponse:
        """Returns one page of models."""
        return await self._run(self._service.list, self.caller, request)

    async def CreateModel(
        self, request: rpc.CreateModelRequest, context: Context
    ) -> model_pb2.Model:
        """Creates a model without versions."""
        return await self._run(self._service.create, self.caller, request)

    async def ImportModelVersion(
        self, request_iterator: AsyncIterator[rpc.ImportModelVersionRequest], context: Context
    ) -> model_pb2.ModelVersion:
        """Takes in a model as a new sealed version; all of its files, or nothing."""
        return await self._take_in(self._service.begin_import, request_iterator)

    async def GetModelVersion(
        self, request: rpc.GetModelVersionRequest, context: Context
    ) -> model_pb2.ModelVersion:
        """Returns one version."""
        return await self._run(self._service.get_version, self.caller, request.name)

    async def ListModelVersions(
        self, request: rpc.ListModelVersionsRequest, context: Context
    ) -> rpc.ListModelVersionsResponse:
        """Returns one page of versions, newest first."""
        return await self._run(self._service.list_versions, self.caller, request)

    async def UpdateModel(
        self, request: rpc.UpdateModelRequest, context: Context
    ) -> model_pb2.Model:
        """Changes the description."""
        return await self._run(self._service.update, self.caller, request)

    async def DeleteModel(
        self, request: rpc.DeleteModelRequest, context: Context
    ) -> tombstone_pb2.Deletion:
        """Deletes a model with all its versions."""
        return await self._run(self._service.delete, self.caller, request)

    async def DeleteModelVersion(
        self, request: rpc.DeleteModelVersionRequest, context: Context
    ) -> tombstone_pb2.Deletion:
        """Deletes one version."""
        return await self._run(self._service.delete_version, self.caller, request)
