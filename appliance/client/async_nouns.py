"""Nouns of which the client for asyncio has more than single calls: transfers, and waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing
from os import PathLike

from appliance.api.data.v1.dataset_pb2 import DatasetVersion
from appliance.api.jobs.v1.job_pb2 import Job
from appliance.api.models.v1.model_pb2 import ModelVersion
from appliance.api.serving.v1.endpoint_pb2 import Endpoint
from appliance.client import transfers, waits
from appliance.client.downloads import Downloaded
from appliance.client.generated.async_calls import (
    AsyncDatasetCalls,
    AsyncEndpointCalls,
    AsyncJobCalls,
    AsyncModelCalls,
    AsyncReportCalls,
)
from appliance.client.transfers import Advance, Document
from appliance.core.errors import ApplianceError, NotFound


class AsyncSdkDatasets(AsyncDatasetCalls):
    """Datasets: text goes in, and comes out where a project allows it."""

    async def upload_files(
        self,
        dataset: str,
        *paths: str | PathLike[str],
        hidden: bool = False,
        progress: Advance | None = None,
    ) -> DatasetVersion:
        """Send text files, or folders of them, as a new version; all of it or nothing.

        Args:
            dataset: which exists.
            paths: .txt, .md and .rst are a document each, .jsonl has one per line.
            hidden: take hidden files and folders too.
            progress: told the bytes read, and those of all files.

        Raises:
            ApplianceError: something cannot be read, or was refused. Nothing stays.
        """
        name = await asyncio.to_thread(
            transfers.upload_files,
            self._calls.apart,
            dataset,
            paths,
            hidden=hidden,
            progress=progress,
        )
        return await self.get_version(name)

    async def upload_documents(self, dataset: str, documents: Iterable[Document]) -> DatasetVersion:
        """Send documents as a new version, all of them or nothing.

        Args:
            dataset: which exists.
            documents: their texts, or mappings of `id`, `text` and `source`, or messages; read
                once, as they are sent. One without an id gets its number.

        Raises:
            ApplianceError: one cannot be taken, or it was refused. Nothing stays.
        """
        name = await asyncio.to_thread(
            transfers.upload_documents, self._calls.apart, dataset, documents
        )
        return await self.get_version(name)

    async def download(
        self,
        version: str,
        folder: str | PathLike[str],
        *,
        force: bool = False,
        progress: Advance | None = None,
    ) -> Downloaded:
        """Take a version out, decrypted, into a new folder: whole and checked, or nothing.

        The same call goes on with what was interrupted. `force` replaces files of a folder.

        Raises:
            ApplianceError: it was refused, or does not fit.
        """
        rpc = "DownloadService.DownloadDatasetVersion"
        name = self._calls.requests.name("datasetVersion", version)
        return await asyncio.to_thread(
            transfers.download, self._calls.apart, rpc, name, folder, force=force, progress=progress
        )


class AsyncSdkModels(AsyncModelCalls):
    """Models: weights go in, and come out where a project allows it."""

    async def import_folder(
        self,
        model: str,
        folder: str | PathLike[str],
        *,
        progress: Advance | None = None,
    ) -> ModelVersion:
        """Take in a model in the layout of Hugging Face as a new version; all of it or nothing.

        Args:
            model: made if it does not exist.
            folder: config.json, tokenizer, *.safetensors. What cannot be used is said before
                anything is sent.
            progress: told the bytes that are there, and those of all files.

        Raises:
            ApplianceError: it cannot be used, or was refused. Nothing stays.
        """
        name = await asyncio.to_thread(
            transfers.import_folder, self._calls.apart, model, folder, progress=progress
        )
        return await self.get_version(name)

    async def download(
        self,
        version: str,
        folder: str | PathLike[str],
        *,
        force: bool = False,
        progress: Advance | None = None,
    ) -> Downloaded:
        """Take a version out, decrypted, into a new folder: whole and checked, or nothing.

        The same call goes on with what was interrupted. `force` replaces files of a folder.

        Raises:
            ApplianceError: it was refused, or does not fit.
        """
        rpc = "DownloadService.DownloadModelVersion"
        name = self._calls.requests.name("modelVersion", version)
        return await asyncio.to_thread(
            transfers.download, self._calls.apart, rpc, name, folder, force=force, progress=progress
        )


class AsyncSdkReports(AsyncReportCalls):
    """Reports: what jobs have found."""

    async def download(
        self,
        report: str,
        folder: str | PathLike[str],
        *,
        force: bool = False,
        progress: Advance | None = None,
    ) -> Downloaded:
        """Get a report with its pictures into a new folder.

        Raises:
            ApplianceError: it was refused, or does not fit.
        """
        rpc = "ReportService.DownloadReport"
        name = self._calls.requests.name("report", report)
        return await asyncio.to_thread(
            transfers.download, self._calls.apart, rpc, name, folder, force=force, progress=progress
        )


class AsyncSdkJobs(AsyncJobCalls):
    """Jobs: pieces of work on nodes."""

    async def wait(
        self,
        name: str,
        *,
        timeout: float | None = None,
        progress: Callable[[Job], None] | None = None,
    ) -> Job:
        """Wait until a job has succeeded; through restarts of the control plane.

        Args:
            name: of the job.
            timeout: seconds; None: as long as it takes.
            progress: told the job now, and each time it changes.

        Raises:
            JobFailed: it failed or was cancelled; the reason is in the sentence.
            WaitTimedOut: it goes on.
            ApplianceError: it was refused or failed.
        """
        limit, job = waits.Limit(timeout), None
        name = self._calls.requests.name("job", name)
        try:
            async with aclosing(self.watch(name, timeout=timeout)) as changes:
                async for job in changes:
                    if waits.job_has_ended(job, progress):
                        break
        except ApplianceError as error:
            raise limit.judged(name, error) from error
        return waits.result_of(job, name)


class AsyncSdkEndpoints(AsyncEndpointCalls):
    """Endpoints: versions that are served."""

    async def wait_until_ready(
        self,
        name: str,
        *,
        timeout: float | None = None,
        progress: Callable[[Endpoint], None] | None = None,
    ) -> Endpoint:
        """Wait until every replica of an endpoint is ready.

        Args:
            name: of the endpoint.
            timeout: seconds; None: as long as it takes.
            progress: told the endpoint now, and each time it changes.

        Raises:
            FailedPrecondition: it cannot be served, or is being taken down.
            WaitTimedOut: it is not ready yet.
            ApplianceError: it was refused or failed.
        """
        limit, endpoint = waits.Limit(timeout), None
        name = self._calls.requests.name("endpoint", name)
        try:
            async with aclosing(self.watch(name, timeout=timeout)) as changes:
                async for endpoint in changes:
                    if waits.endpoint_has_settled(endpoint, progress):
                        break
        except ApplianceError as error:
            raise limit.judged(name, error) from error
        return waits.ready(endpoint, name)

    async def wait_until_deleted(self, name: str, *, timeout: float | None = None) -> None:
        """Wait until an endpoint that is being deleted is gone.

        Raises:
            WaitTimedOut: it is there still.
            ApplianceError: it was refused or failed.
        """
        limit = waits.Limit(timeout)
        name = self._calls.requests.name("endpoint", name)
        try:
            async for _ in self.watch(name, timeout=timeout):
                pass
        except NotFound:
            return
        except ApplianceError as error:
            raise limit.judged(name, error) from error
