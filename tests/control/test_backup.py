"""A copy of the data directory, made as `docs/operations.md` says, is an appliance again."""

from __future__ import annotations

import shutil
from pathlib import Path

from appliance.api.projects.v1 import project_service_pb2 as rpc
from appliance.api.projects.v1.project_service_pb2_grpc import ProjectServiceStub
from tests.fakes.appliance import ADMINISTRATOR, Appliance, bearer, make_data_directory, running


async def projects(appliance: Appliance) -> list[str]:
    stub = appliance.api(ProjectServiceStub)
    metadata = bearer(appliance.session(ADMINISTRATOR))
    answer = await stub.ListProjects(rpc.ListProjectsRequest(), metadata=metadata)
    return [project.name for project in answer.projects]


async def make_project(appliance: Appliance, name: str) -> None:
    stub = appliance.api(ProjectServiceStub)
    metadata = bearer(appliance.session(ADMINISTRATOR))
    await stub.CreateProject(rpc.CreateProjectRequest(project_id=name), metadata=metadata)


async def test_what_was_copied_while_it_stood_starts_again(tmp_path: Path) -> None:
    made, data, copy = tmp_path / "made", tmp_path / "data", tmp_path / "copy"
    make_data_directory(made)
    async with running(made, data) as appliance:
        await make_project(appliance, "before")
    shutil.copytree(data, copy, ignore=shutil.ignore_patterns("run", "root.key"))
    shutil.copy2(data / "root.key", tmp_path / "root.key")
    (tmp_path / "later").mkdir()
    async with running(data, tmp_path / "later" / "data") as appliance:
        await make_project(appliance, "after")
        assert await projects(appliance) == ["projects/after", "projects/before"]
    shutil.copy2(tmp_path / "root.key", copy / "root.key")
    async with running(copy, tmp_path / "restored") as appliance:
        assert await projects(appliance) == ["projects/before"]
        await make_project(appliance, "again")
