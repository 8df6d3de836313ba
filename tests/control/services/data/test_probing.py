"""Who uploads into a dataset that is not there learns so in his own project alone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from appliance.api.data.v1 import dataset_service_pb2 as rpc
from appliance.api.data.v1 import dataset_service_pb2_grpc
from appliance.core.errors import NotFound
from tests.fakes.appliance import ADMINISTRATOR, Appliance, bearer, error_of


@pytest.mark.attack
async def test_names_of_other_projects_are_not_found_out_by_uploading(appliance: Appliance) -> None:
    for project in ("mine", "theirs"):
        appliance.project(project)
    appliance.user("dora", ("developer", "mine"))
    stub = appliance.api(dataset_service_pb2_grpc.DatasetServiceStub)
    await stub.CreateDataset(
        rpc.CreateDatasetRequest(parent="projects/theirs", dataset_id="secret"),
        metadata=bearer(appliance.session(ADMINISTRATOR)),
    )
    token = appliance.session("dora")

    async def said(parent: str) -> str:
        async def messages() -> AsyncIterator[rpc.UploadDatasetVersionRequest]:
            yield rpc.UploadDatasetVersionRequest(parent=parent)

        error = await error_of(stub.UploadDatasetVersion(messages(), metadata=bearer(token)))
        assert isinstance(error, NotFound)
        return error.message

    for parent in (
        "projects/theirs/datasets/secret",
        "projects/theirs/datasets/none",
        "projects/nosuch/datasets/none",
    ):
        assert await said(parent) == f"there is no {parent}, or you hold no role there"
    assert "`appliance dataset create none --project mine`" in await said(
        "projects/mine/datasets/none"
    )
