"""Downloads over the wire: who may, how long, how many, and what the audit log says of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.api.access.v1 import binding_pb2, binding_service_pb2
from appliance.api.access.v1.binding_service_pb2_grpc import BindingServiceStub
from appliance.api.data.v1 import download_service_pb2 as rpc
from appliance.api.data.v1.download_service_pb2_grpc import DownloadServiceStub
from appliance.api.models.v1 import model_service_pb2
from appliance.api.models.v1.model_service_pb2_grpc import ModelServiceStub
from appliance.api.projects.v1 import project_service_pb2
from appliance.api.projects.v1.project_service_pb2_grpc import ProjectServiceStub
from appliance.control.auth.scopes import EVERYWHERE
from appliance.control.main import ControlPlane
from appliance.control.rpc.downloads import DownloadRpc
from appliance.control.rpc.giving import MAX_DOWNLOADS_OF_CALLER
from appliance.control.rpc.pools import DOWNLOAD_THREADS
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.data import downloads
from appliance.control.services.data.artifacts import Provenance
from appliance.control.services.data.downloads import Downloads
from appliance.control.store import tables
from appliance.core.errors import (
    Denied,
    Exhausted,
    FailedPrecondition,
    FreshMfaRequired,
    NotFound,
    Unavailable,
)
from tests.fakes.appliance import Appliance, MovingClock, bearer, error_of, running, settings_of
from tests.fakes.lab import write

SIZE = 40 << 20
NAME = "projects/demo/models/large/versions/1"
METHOD = "/appliance.api.data.v1.DownloadService/DownloadModelVersion"
ROLES = """
exporter:
  description: Takes models out.
  scopes: [project]
  permissions: [models.download]
"""


def staged(control: ControlPlane) -> list[Servicer]:
    """The same service for callers who may stall for a tenth of a second."""
    service = Downloads(control.base.database, control.work.artifacts)
    return [DownloadRpc(service, control._pool, control.base.events, stall_seconds=0.1)]


@pytest.fixture
async def appliance(template: Path, tmp_path: Path) -> AsyncIterator[Appliance]:
    file = tmp_path / "roles.yaml"
    file.write_text(ROLES)
    file.chmod(0o644)

    def settings(folder: Path) -> Any:
        return settings_of(folder, roles=file)

    async with running(template, tmp_path / "data", settings=settings, stage=staged) as started:
        started.project("demo")
        started.user("eve", ("exporter", "demo"))
        started.user("olga", ("owner", "demo"))
        store(started)
        yield started


def store(appliance: Appliance, size: int = SIZE) -> None:
    base, artifacts = appliance.control.base, appliance.control.work.artifacts
    with base.database.write() as transaction:
        version = artifacts.allocate(
            transaction, "demo", "model", "large", Provenance("users/alice")
        )
        transaction.run(tables.project.update().values(allow_downloads=True))
    digest = write(artifacts.writer(version), {"weights.bin": bytes(size)})
    reader = artifacts.verify(version, digest)
    artifacts.sign(version, digest)
    with base.database.write() as transaction:
        artifacts.register(transaction, version, reader, {}, {"kind": "upload", "inputs": []})


def download(
    appliance: Appliance, who: str, request_id: str = "", *, stage: bool = False, **begin: Any
) -> Any:
    stub = appliance.staged(DownloadServiceStub) if stage else appliance.api(DownloadServiceStub)
    request = rpc.DownloadModelVersionRequest(name=NAME, **begin)
    metadata = bearer(appliance.session(who), request_id)
    return stub.DownloadModelVersion(request, metadata=metadata)


async def settled(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not look():  # noqa: ASYNC110 - the audit log tells nobody
            await asyncio.sleep(0.01)


async def test_a_download_is_in_the_audit_log_when_it_begins_and_when_it_ends(
    appliance: Appliance,
) -> None:
    call = download(appliance, "eve", "mine", offset=1 << 20)
    first = await anext(aiter(call))
    (intent,) = [record for record in appliance.records() if record["method"] == METHOD]
    assert (intent["kind"], intent["principal"]) == ("intent", "users/eve")
    assert (intent["method"], intent["resource"]) == (METHOD, NAME)
    assert intent["details"]["asked"] == {"offset": 1 << 20}
    came = sum([len(part.data) async for part in call])
    assert came == SIZE - (1 << 20)
    _, result = appliance.records_of("mine")
    assert (result["outcome"], result["details"]["bytes"]) == ("OK", str(came))
    assert result["details"]["content"] == first.listing.manifest_digest


@pytest.mark.attack
async def test_no_built_in_role_may(appliance: Appliance) -> None:
    for who in ("olga", "alice"):
        error = await error_of(download(appliance, who))
        assert isinstance(error, Denied)
        assert "(in role exporter), which an administrator of the platform" in error.message
    appliance.user("nobody")
    assert isinstance(await error_of(download(appliance, "nobody")), NotFound)


@pytest.mark.attack
async def test_only_a_fresh_factor_opens_a_project(appliance: Appliance) -> None:
    stub = appliance.api(ProjectServiceStub)
    request = project_service_pb2.UpdateProjectRequest(
        project={"name": "projects/demo", "allow_downloads": False},
        update_mask={"paths": ["allow_downloads"]},
    )
    stale = appliance.session("alice", mfa_age=timedelta(minutes=6))
    for token, kind in ((stale, FreshMfaRequired), (appliance.session("olga"), Denied)):
        error = await error_of(stub.UpdateProject(request, metadata=bearer(token)))
        assert type(error) is kind
    await stub.UpdateProject(request, metadata=bearer(appliance.session("alice"), "closed"))
    (_, result) = appliance.records_of("closed")
    assert result["details"]["asked"] == {
        "project.name": "projects/demo",
        "project.allow_downloads": False,
        "update_mask.paths": ["allow_downloads"],
    }
    assert isinstance(await error_of(download(appliance, "eve")), FailedPrecondition)


@pytest.mark.attack
async def test_only_administrators_of_everything_give_the_right(appliance: Appliance) -> None:
    stub = appliance.api(BindingServiceStub)
    appliance.user("frank")
    appliance.user("everywhere", ("administrator", EVERYWHERE))
    binding = binding_pb2.Binding(
        principal="users/frank", role="roles/exporter", scope="projects/demo"
    )
    request = binding_service_pb2.CreateBindingRequest(binding=binding)
    for who in ("olga", "everywhere"):
        call = stub.CreateBinding(request, metadata=bearer(appliance.session(who)))
        error = await error_of(call)
        assert isinstance(error, Denied)
        assert "you lack models.download in projects/demo" in error.message
    metadata = bearer(appliance.session("alice"))
    await stub.CreateBinding(request, metadata=metadata)
    assert (await anext(aiter(download(appliance, "frank")))).HasField("listing")


async def test_a_bound_role_that_left_the_file_stops_the_start_and_is_named(
    template: Path, tmp_path: Path
) -> None:
    file = tmp_path / "roles.yaml"
    file.write_text(ROLES)
    file.chmod(0o644)

    def settings(folder: Path) -> Any:
        return settings_of(folder, roles=file)

    async with running(template, tmp_path / "data", settings=settings) as started:
        started.project("demo")
        started.user("eve", ("exporter", "demo"))
    with pytest.raises(FailedPrecondition, match=r"'exporter'.* stays in its file as long as"):
        ControlPlane.build(settings_of(tmp_path / "data"), MovingClock())
    control = ControlPlane.build(settings(tmp_path / "data"), MovingClock())
    await control.server.stop()
    await control.close()


@pytest.mark.attack
async def test_a_download_ends_when_the_right_is_taken_away(appliance: Appliance) -> None:
    """Within two seconds; the record says how much had left by then."""
    call = download(appliance, "eve", "mine")
    await anext(aiter(call))
    with appliance.database.write() as transaction:
        binding = tables.binding
        transaction.run(binding.delete().where(binding.c.subject == "user:eve"))
        appliance.control.base.policies.changed(transaction)
    # Not read meanwhile: it would be done before anybody looks.
    await settled(lambda: len(appliance.records_of("mine")) == 2)
    assert isinstance(await error_of(call), NotFound)
    result = appliance.records_of("mine")[1]
    assert result["outcome"] == "RESOURCE_NOT_FOUND"
    assert 0 < int(result["details"]["bytes"]) < SIZE


@pytest.mark.attack
async def test_who_takes_nothing_loses_the_place(appliance: Appliance) -> None:
    call = download(appliance, "eve", "mine", stage=True)
    await anext(aiter(call))
    await settled(lambda: len(appliance.records_of("mine")) == 2)
    error = await error_of(call)
    assert isinstance(error, Unavailable)
    assert appliance.records_of("mine")[1]["outcome"] == "UNAVAILABLE"


@pytest.mark.attack
async def test_so_many_at_a_time_and_the_next_one_when_one_has_ended(appliance: Appliance) -> None:
    running_calls = [download(appliance, "eve", f"d-{n}") for n in range(MAX_DOWNLOADS_OF_CALLER)]
    for call in running_calls:
        await anext(aiter(call))
    error = await error_of(download(appliance, "eve"))
    assert isinstance(error, Exhausted)
    assert error.retry_after
    running_calls[0].cancel()
    await settled(lambda: len(appliance.records_of("d-0")) == 2)
    assert appliance.records_of("d-0")[1]["outcome"] == "CANCELLED"
    assert (await anext(aiter(download(appliance, "eve")))).HasField("listing")
    for call in running_calls:
        call.cancel()


async def test_nobody_waits_for_downloads_that_wait_for_the_store(
    appliance: Appliance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every thread of downloads hangs in the store; other calls, of the store too, are served."""
    let_go, hanging = threading.Event(), threading.Semaphore(0)
    usual = downloads.start_of

    def hangs(*arguments: Any) -> Any:
        hanging.release()
        assert let_go.wait(30)
        return usual(*arguments)

    monkeypatch.setattr(downloads, "start_of", hangs)
    calls = [download(appliance, "eve") for _ in range(DOWNLOAD_THREADS)]
    try:
        reads = [asyncio.ensure_future(call.read()) for call in calls]
        await settled(lambda: hanging._value == DOWNLOAD_THREADS)
        models = appliance.api(ModelServiceStub)
        metadata = bearer(appliance.session("olga"))
        version = model_service_pb2.GetModelVersionRequest(name=NAME)
        found = await models.GetModelVersion(version, metadata=metadata, timeout=10)
        assert found.size_bytes == SIZE
    finally:
        let_go.set()
    assert all(part.HasField("listing") for part in await asyncio.gather(*reads))
    for call in calls:
        call.cancel()
