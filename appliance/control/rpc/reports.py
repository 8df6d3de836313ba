"""ReportService: see `appliance.control.services.data.reports`."""

from __future__ import annotations

from typing import Any

import grpc.aio

from appliance.api.data.v1 import tombstone_pb2
from appliance.api.reports.v1 import report_pb2
from appliance.api.reports.v1 import report_service_pb2 as rpc
from appliance.api.reports.v1.report_service_pb2_grpc import ReportServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.giving import GivesOut
from appliance.control.rpc.pools import CallPool
from appliance.control.services.data.reports import Reports

Context = grpc.aio.ServicerContext[Any, Any]


class ReportRpc(GivesOut, ReportServiceServicer):
    """Translates."""

    def __init__(self, service: Reports, pool: CallPool, events: Events) -> None:
        super().__init__(pool, events)
        self._service = service

    async def GetReport(self, request: rpc.GetReportRequest, context: Context) -> report_pb2.Report:
        """Returns one report with what it says."""
        return await self._run_in(self._pool.storage, self._service.get, self.caller, request.name)

    async def ListReports(
        self, request: rpc.ListReportsRequest, context: Context
    ) -> rpc.ListReportsResponse:
        """Returns one page of the reports of a project."""
        return await self._run(self._service.list, self.caller, request)

    async def DownloadReport(self, request: rpc.DownloadReportRequest, context: Context) -> None:
        """Streams the files of a report."""
        await self._give_out(context, self._service.files, request)

    async def DeleteReport(
        self, request: rpc.DeleteReportRequest, context: Context
    ) -> tombstone_pb2.Deletion:
        """Deletes a report."""
        return await self._run(self._service.delete, self.caller, request)
