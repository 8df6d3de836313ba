from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from appliance.control.store.database import Database
from tests.fakes.appliance import Appliance, make_data_directory, running
from tests.fakes.lab import Lab, new_lab


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a new appliance; copy it."""
    return make_data_directory(tmp_path_factory.mktemp("template") / "data")


@pytest.fixture
def copy(template: Path, tmp_path: Path) -> Path:
    """A data directory of its own."""
    return Path(shutil.copytree(template, tmp_path / "data"))


@pytest.fixture
async def appliance(
    request: pytest.FixtureRequest, template: Path, tmp_path: Path
) -> AsyncIterator[Appliance]:
    """A running control plane."""
    async with running(template, tmp_path / "data") as started:
        yield started
        _check_believed(request, started.database)


@pytest.fixture
def lab(request: pytest.FixtureRequest, template: Path, tmp_path: Path) -> Iterator[Lab]:
    """A control plane and a project, without sockets; its time is moved by hand."""
    with new_lab(template, tmp_path / "data") as started:
        yield started
        _check_believed(request, started.database)


def _check_believed(request: pytest.FixtureRequest, database: Database) -> None:
    """Nobody else has written the state, so everything in it was believed."""
    if request.node.get_closest_marker("attack") is None:
        assert database.found == {}
