"""docs/bounds.md names every table and file there is, none that there is not, and true numbers."""

from __future__ import annotations

import fnmatch
import importlib
import re
import tarfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from appliance.cli.local import Local
from appliance.control.audit import closed
from appliance.control.bootstrap import setup
from appliance.control.bootstrap.opening import open_data
from appliance.control.store import tables
from appliance.core.data_directory import DataDirectory
from appliance.crypto import chain
from appliance.gateway import boots, front, spool
from appliance.machine import identity
from tests.fakes.appliance import PASSWORD, MovingClock, settings_of
from tests.fakes.pages import ROOT

PAGE = (ROOT / "docs/bounds.md").read_text()
RELEASED = ROOT / "tests/data/0.1.0.tar"
_CONSTANT = re.compile(r"`(appliance(?:\.[a-z_]+)+)\.([A-Z_]+)`")


def rows(heading: str) -> list[list[str]]:
    """Cells of the table below a heading, without its head."""
    part = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def named(heading: str) -> list[str]:
    return [name for row in rows(heading) for name in re.findall(r"`([^`]+)`", row[0])]


def test_each_table_is_on_the_page_once_and_no_other() -> None:
    there = [*tables.metadata.tables, "alembic_version"]
    assert sorted(named("Tables of `state.db`")) == sorted(there)


def made_by_a_new_one(folder: Path) -> Iterator[str]:
    """What `init` and the first start of a control plane leave."""
    data = folder / "data"
    setup.init(setup.InitPlan(data, "ada"), PASSWORD)
    open_data(settings_of(data), MovingClock()).close()
    for path in data.rglob("*"):
        if path.is_file():
            yield path.relative_to(data).as_posix()


def left_by_a_released_one() -> Iterator[str]:
    with tarfile.open(RELEASED) as archive:
        for member in archive:
            if member.isfile():
                yield member.name.split("/", 1)[1]


def named_by_code() -> Iterator[str]:
    """What comes to be while it works, by the names that the code gives it."""
    local = Local(Path("/data"))
    for program in ("control", "gateway", "node", "supervisor"):
        log = local.log(program).relative_to(local.path)
        yield from (log.as_posix(), log.with_suffix(".log.1").as_posix(), f"run/{program}.pid")
    yield from ("state.db-wal", "state.db-shm")
    segment = Path("audit", chain.segment_name(0))
    yield from (segment.as_posix(), segment.with_suffix(closed.PROOF_SUFFIX).as_posix())
    yield from (f"audit/{closed.ARCHIVED}", f"uploads/{'0' * 32}.ids")
    file = Path("gateway/state/spool", boots.file_name(0, "0" * 16, 1))
    yield from (file.as_posix(), file.with_suffix(boots.DAMAGED).as_posix())
    yield f"gateway/state/spool/{spool.LOCK}"
    yield f"gateway/state/{front.FILE}"
    for machine in ("gateway", "node"):
        yield from (f"{machine}/state/{identity.FILE}", f"{machine}/join.token")
    yield "node/state/gateways.json"
    run = f"node/state/runs/{'0' * 32}.1"
    yield from (f"{run}/log", f"{run}/log.1", f"node/state/scratch/{'0' * 32}.1")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    fresh = made_by_a_new_one(tmp_path_factory.mktemp("new"))
    return {*fresh, *left_by_a_released_one(), *named_by_code()}


def test_each_file_of_a_data_directory_is_on_the_page(files: set[str]) -> None:
    patterns = named("Files and folders")
    missing = [
        file for file in sorted(files) if not any(fnmatch.fnmatch(file, each) for each in patterns)
    ]
    assert missing == []


def test_the_page_names_no_file_that_there_is_not(files: set[str]) -> None:
    patterns = named("Files and folders")
    assert [each for each in patterns if not fnmatch.filter(files, each)] == []


def test_each_folder_of_a_data_directory_is_on_the_page() -> None:
    data = DataDirectory(Path("/data"))
    folders = {
        path.name
        for name in dir(DataDirectory)
        if isinstance(getattr(DataDirectory, name), property)
        and not (path := getattr(data, name)).suffix
    }
    assert folders == {each.split("/")[0] for each in named("Files and folders") if "/" in each}


def forms(value: object) -> set[str]:
    """How a page may write a number."""
    if isinstance(value, timedelta):
        days = value // timedelta(days=1)
        return {f"{days} days", "a day" if days == 1 else ""} - {""}
    assert isinstance(value, int | float)
    found = {str(value), f"{value:,}"}
    for power, unit in ((10, "KiB"), (20, "MiB"), (30, "GiB")):
        if value >= 1 << power and value % (1 << power) == 0:
            found |= {f"{int(value) >> power} {unit}", f"{int(value) >> power}"}
    return found


@pytest.mark.parametrize(
    "line",
    [line for line in PAGE.splitlines() if _CONSTANT.search(line)],
    ids=lambda line: line[:40],
)
def test_numbers_are_those_of_the_code(line: str) -> None:
    for module, name in _CONSTANT.findall(line):
        value = getattr(importlib.import_module(module), name)
        words = re.sub(r"`[^`]*`", "", line)
        assert any(
            re.search(rf"(?<![\d,]){re.escape(form)}(?![\d,])", words) for form in forms(value)
        ), (
            name,
            value,
        )
