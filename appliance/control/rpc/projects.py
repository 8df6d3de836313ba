"""ProjectService: see `appliance.control.services.access.projects`."""

from __future__ import annotations

from typing import Any

import grpc.aio

from appliance.api.projects.v1 import project_pb2
from appliance.api.projects.v1 import project_service_pb2 as rpc
from appliance.api.projects.v1.project_service_pb2_grpc import ProjectServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.access.projects import Projects

Context = grpc.aio.ServicerContext[Any, Any]


class ProjectRpc(Servicer, ProjectServiceServicer):
    """Translates."""

    def __init__(self, service: Projects, pool: CallPool, events: Events) -> None:
        super().__init__(pool, events)
        self._service = service

    async def GetProject(
        self, request: rpc.GetProjectRequest, context: Context
    ) -> project_pb2.Project:
        """Returns one project."""
        return await self._run(self._service.get, self.caller, request.name)

    async def ListProjects(
        self, request: rpc.ListProjectsRequest, context: Context
    ) -> rpc.ListProjectsResponse:
        """Returns one page of projects."""
        return await self._run(self._service.list, self.caller, request)

    async def CreateProject(
        self, request: rpc.CreateProjectRequest, context: Context
    ) -> project_pb2.Project:
        """Creates a project and its key."""
        return await self._run(self._service.create, self.caller, request)

    async def UpdateProject(
        self, request: rpc.UpdateProjectRequest, context: Context
    ) -> project_pb2.Project:
        """Changes what is set in the request."""
        return await self._run(self._service.update, self.caller, request)

    async def DeleteProject(
        self, request: rpc.DeleteProjectRequest, context: Context
    ) -> rpc.DeleteProjectResponse:
        """Deletes an empty project."""
        return await self._run(self._service.delete, self.caller, request)
