"""What an agent hears of the certificates of gateways stands in the file that its workers read."""

from __future__ import annotations

import asyncio
import errno
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.core import files
from appliance.node.gateways import GatewayCertificates
from appliance.wire.accepted import AcceptedFile, AcceptedSerials

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


class Node:
    """A node that hears."""

    def __init__(self, folder: Path) -> None:
        self.file = AcceptedFile(folder / "gateways.json")
        self.gateways = GatewayCertificates(self.file)

    async def hear(self, *serials: str, after: float = 0) -> AcceptedSerials | None:
        """Hear these, so many seconds after; what the file says then."""
        said = rpc.GatewayCertificates(serials=serials)
        said.as_of.FromDatetime(NOW + timedelta(seconds=after))
        self.gateways.hear(said)
        if (writing := self.gateways._writing) is not None:
            await writing
        return self.found()

    def found(self) -> AcceptedSerials | None:
        return (
            AcceptedSerials.parse(self.file.path.read_bytes()) if self.file.path.exists() else None
        )


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def accepted(*serials: str, after: float = 0) -> AcceptedSerials:
    return AcceptedSerials(frozenset(serials), NOW + timedelta(seconds=after))


async def test_it_is_written_when_it_is_news_and_every_ten_seconds(node: Node) -> None:
    assert await node.hear("a") == accepted("a")
    assert await node.hear("a", after=9) == accepted("a")
    assert await node.hear("a", after=10) == accepted("a", after=10)
    assert await node.hear("b", "a", after=11) == accepted("a", "b", after=11)
    assert await node.hear(after=12) == accepted(after=12)
    # The clock of the control plane was set back.
    assert await node.hear(after=-3600) == accepted(after=-3600)


async def test_what_a_full_disk_did_not_take_is_written_when_it_is_heard_again(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await node.hear("a")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_all", full)
        assert await node.hear("b", after=2) == accepted("a")
    assert "replicas do not hear which gateways count" in caplog.text
    assert await node.hear("b", after=4) == accepted("b", after=4)


async def test_a_disk_that_hangs_holds_nothing_up(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, loop = asyncio.Event(), asyncio.get_running_loop()
    write, written = node.file.write, []

    def slow(said: AcceptedSerials) -> None:
        asyncio.run_coroutine_threadsafe(goes_on.wait(), loop).result()
        written.append(said)
        write(said)

    monkeypatch.setattr(node.file, "write", slow)
    hearing = asyncio.create_task(node.hear("a"))
    await asyncio.sleep(0.01)
    for after in range(100):
        node.gateways.hear(rpc.GatewayCertificates(serials=["b", str(after)]))
    assert written == []
    goes_on.set()
    assert await hearing == accepted("a")
    assert len(written) == 1
    assert await node.hear("b", after=2) == accepted("b", after=2)
