"""A whole control plane whose disk fills up, whose files are taken away, whose parts fail."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.api.projects.v1 import project_service_pb2 as rpc
from appliance.api.projects.v1 import project_service_pb2_grpc
from appliance.control.audit import log as log_module
from appliance.control.main import ControlPlane
from appliance.control.store import tables
from appliance.core.data_directory import DataDirectory
from appliance.core.errors import ApplianceError, AuditUnavailable, FailedPrecondition
from appliance.crypto.chain import Verified
from tests.fakes.appliance import (
    ADMINISTRATOR,
    Appliance,
    MovingClock,
    bearer,
    error_of,
    running,
    settings_of,
)
from tests.fakes.audit import verified as proved
from tests.fakes.disk import filled, small_disk

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look each 10 ms instead of each second."""
    monkeypatch.setattr(log_module, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr("appliance.control.main.HEALTH_SECONDS", 0.01)


@asynccontextmanager
async def told(appliance: Appliance) -> AsyncIterator[None]:
    """While the control plane tells its health."""
    task = asyncio.create_task(appliance.control.tell_health())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def becomes(appliance: Appliance, status: int) -> None:
    stub = appliance.api(health_pb2_grpc.HealthStub)
    async with asyncio.timeout(30):
        async for answer in stub.Watch(health_pb2.HealthCheckRequest()):
            if answer.status == status:
                return


def create(appliance: Appliance, name: str, token: str) -> object:
    return appliance.api(project_service_pb2_grpc.ProjectServiceStub).CreateProject(
        rpc.CreateProjectRequest(project_id=name), metadata=bearer(token), timeout=20
    )


async def refusal(appliance: Appliance, token: str) -> ApplianceError:
    """Create projects until one is refused: a page of a file may still have room."""
    for number in range(200):
        try:
            await create(appliance, f"late-{number}", token)  # type: ignore[misc]  # an aio call
        except Exception:  # noqa: BLE001 - `error_of` asks again and says what it is
            return await error_of(create(appliance, f"late-{number}", token))
    raise AssertionError("nothing was refused")


def verified(appliance: Appliance) -> Verified:
    key = appliance.control.base.keyring.audit_sign.verify_key
    return proved(DataDirectory(appliance.folder).audit, key=key)


@pytest.mark.attack
async def test_a_full_disk_is_said_and_survived(template: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 48) as disk:
        async with running(template, disk / "data") as appliance, told(appliance):
            token = appliance.session(ADMINISTRATOR)
            await create(appliance, "before", token)  # type: ignore[misc]  # an aio call
            await becomes(appliance, SERVING)
            with filled(disk):
                error = await refusal(appliance, token)
                assert error.code in {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
                assert "the disk of the control plane is full" in error.message
                assert "free some space there" in error.message
                assert str(disk) not in f"{error.message}{error.metadata}{error.fields}"
                await becomes(appliance, NOT_SERVING)
                assert isinstance(await error_of(create(appliance, "x", token)), AuditUnavailable)
            await becomes(appliance, SERVING)
            await create(appliance, "after", token)  # type: ignore[misc]  # an aio call
            with appliance.database.read() as state:
                names = {row.id for row in state.all(tables.project.select())}
            assert {"before", "after"} <= names
            assert "x" not in names
            found = verified(appliance)
        assert found.covered > 0


@pytest.mark.attack
@pytest.mark.parametrize(
    "which",
    [
        lambda data: next(data.audit.glob("*.log")),
        lambda data: data.audit / "checkpoints",
        lambda data: data.state,
        lambda data: data.keyring,
    ],
    ids=["segment", "checkpoints", "state", "keyring"],
)
async def test_what_is_taken_away_ends_what_is_acknowledged(
    appliance: Appliance, which: Callable[[DataDirectory], Path]
) -> None:
    token = appliance.session(ADMINISTRATOR)
    await create(appliance, "before", token)  # type: ignore[misc]  # an aio call
    async with told(appliance):
        await becomes(appliance, SERVING)
        path = which(DataDirectory(appliance.folder))
        path.rename(path.with_name("taken"))
        await becomes(appliance, NOT_SERVING)
        error = await error_of(create(appliance, "late", token))
    assert isinstance(error, AuditUnavailable)
    assert f"{path.name} was removed" in error.message
    assert str(appliance.folder) not in f"{error.message}{error.metadata}"


async def test_the_root_key_may_be_taken_away(appliance: Appliance) -> None:
    """It is needed for a start; who keeps it elsewhere does right."""
    token = appliance.session(ADMINISTRATOR)
    async with told(appliance):
        DataDirectory(appliance.folder).root_key.unlink()
        await create(appliance, "one", token)  # type: ignore[misc]  # an aio call
        await becomes(appliance, SERVING)


# --- tables, and parts of the process -------------------------------------------------------------


@pytest.mark.attack
async def test_a_policy_that_is_not_that_of_the_tables_is_said_in_health(
    appliance: Appliance,
) -> None:
    token = appliance.session(ADMINISTRATOR)
    base = appliance.control.base
    async with told(appliance):
        await create(appliance, "before", token)  # type: ignore[misc]  # an aio call
        await becomes(appliance, SERVING)
        with base.database.write() as transaction:  # Past the checks, and without a new version.
            transaction.run(tables.binding.delete())
        assert await asyncio.to_thread(base.policies.cross_check)
        await becomes(appliance, NOT_SERVING)
        error = await error_of(create(appliance, "late", token))
    assert isinstance(error, FailedPrecondition)
    assert error.message == base.policies.trouble


@pytest.mark.parametrize("part", ["_record_refusals", "tell_health"])
async def test_a_part_that_ends_with_an_error_ends_the_process(
    copy: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would go on without its records or its health, and nobody would know."""
    control = ControlPlane.build(settings_of(copy), MovingClock())

    async def fail() -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(control, part, fail)
    try:
        async with asyncio.timeout(30):
            with pytest.raises(RuntimeError, match="injected"):
                await control.run()
    finally:
        await control.close()


async def test_what_runs_beside_the_server_ends_with_it(copy: Path) -> None:
    control = ControlPlane.build(settings_of(copy), MovingClock())
    try:
        before = asyncio.all_tasks()
        serving = asyncio.create_task(control.run())
        await asyncio.sleep(0)
        control.server.request_stop()
        async with asyncio.timeout(30):
            await serving
        assert not asyncio.all_tasks() - before
    finally:
        await control.close()


async def test_passwords_in_work_do_not_stop_the_loop_at_the_end(copy: Path) -> None:
    control = ControlPlane.build(settings_of(copy), MovingClock())
    goes_on, loop = threading.Event(), asyncio.get_running_loop()
    shut_down = control.people.hasher.close

    def close() -> None:
        loop.call_soon_threadsafe(goes_on.set)
        assert goes_on.wait(30), "the loop stands still"
        shut_down()

    control.people.hasher.close = close  # type: ignore[method-assign]  # a slow password
    await control.close()
