"""The SDK against a real control plane: what it sends is whole, or leaves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from appliance.client import Appliance as Sdk
from appliance.client import AsyncAppliance, Denied, InvalidInput, NotFound
from appliance.control.store import tables
from tests.fakes.appliance import Appliance

REQUEST = "11111111-1111-4111-8111-111111111111"


@pytest.fixture
async def access(appliance: Appliance) -> AsyncIterator[dict[str, Any]]:
    """Arguments of a client of a developer, while the queue of the object store is done."""
    appliance.project("demo")
    appliance.user("bob", ("developer", "demo"))
    arguments = {
        "server": f"127.0.0.1:{appliance.control.api_port}",
        "ca": appliance.ca_pem,
        "token": appliance.session("bob"),
        "project": "demo",
    }
    with ThreadPoolExecutor(2) as pool:
        working = asyncio.create_task(appliance.control.work.storage.run(pool, 2))
        yield arguments
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def test_documents_become_a_version_with_and_without_a_loop(
    access: dict[str, Any], tmp_path: Path
) -> None:
    def sync() -> list[str]:
        with Sdk(**access) as client:
            client.datasets.create("docs")
            told: list[tuple[int, int]] = []
            folder = tmp_path / "texts"
            folder.mkdir()
            (folder / "a.txt").write_text("A text.\n")
            (folder / "b.jsonl").write_text('{"text": "Another."}\n{"text": "A third."}\n')
            version = client.datasets.upload_files(
                "docs", folder, progress=lambda done, of: told.append((done, of))
            )
            assert (version.documents, told[-1][0]) == (3, told[-1][1])
            again = client.datasets.create("docs2", request_id=REQUEST)
            assert client.datasets.create("docs2", request_id=REQUEST) == again
            return [each.name for each in client.datasets.list_versions("docs")]

    assert await asyncio.to_thread(sync) == ["projects/demo/datasets/docs/versions/1"]
    async with AsyncAppliance(**access) as client:
        version = await client.datasets.upload_documents("docs", (f"Text {i}" for i in range(50)))
        assert (version.name.rpartition("/")[2], version.documents) == ("2", 50)
        assert [each.name async for each in client.datasets.list_versions("docs")] == [
            f"projects/demo/datasets/docs/versions/{number}" for number in (2, 1)
        ]
        with pytest.raises(NotFound):
            await client.jobs.wait("nosuch")
        with pytest.raises(Denied):
            await client.projects.update({"name": "demo", "allow_downloads": True})


async def test_an_upload_that_fails_leaves_nothing(
    appliance: Appliance, access: dict[str, Any]
) -> None:
    def broken() -> Iterator[Any]:
        yield "A text."
        raise ZeroDivisionError

    async with AsyncAppliance(**access) as client:
        await client.datasets.create("docs")
        with pytest.raises(ZeroDivisionError):
            await client.datasets.upload_documents("docs", broken())
        with pytest.raises(InvalidInput, match="document 0: give its text"):
            await client.datasets.upload_documents("docs", [{"words": "x"}])
        assert [each.name async for each in client.datasets.list_versions("docs")] == []
    with appliance.database.read() as state:
        rows = state.all(tables.upload.select())
    assert [row.state for row in rows if row.state == "OPEN"] == []
