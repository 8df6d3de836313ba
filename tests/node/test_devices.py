"""What a server offers."""

from pathlib import Path

import pytest

from appliance.core.config import document, load
from appliance.core.errors import FailedPrecondition
from appliance.node.config import Devices, NodeConfig
from appliance.node.devices import Offer, offer, total_memory

GIB = 1 << 30


@pytest.mark.parametrize(
    ("wanted", "gpus", "expected"),
    [
        (Devices(), 0, Offer("cpu", 16, 80 * GIB, 1)),
        (Devices(), 8, Offer("cuda", 8, 80 * GIB, 2)),
        (Devices(kind="cpu", count=4), 8, Offer("cpu", 4, 80 * GIB, 4)),
        (Devices(count=32), 0, Offer("cpu", 32, 80 * GIB, 1)),
        (Devices(count=2, memory_bytes=GIB, threads=3), 8, Offer("cuda", 2, GIB, 3)),
    ],
)
def test_offers_what_there_is_unless_told(wanted: Devices, gpus: int, expected: Offer) -> None:
    assert offer(wanted, gpus=gpus, cores=16, memory_bytes=100 * GIB) == expected


@pytest.mark.parametrize("wanted", [Devices(kind="cuda"), Devices(kind="cuda", count=2)])
def test_gpus_that_are_not_there_are_an_error(wanted: Devices) -> None:
    with pytest.raises(FailedPrecondition, match="nvidia-smi"):
        offer(wanted, gpus=0, cores=2, memory_bytes=GIB)


def test_memory_is_read_from_the_kernel(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       1024 kB\nMemFree: 1 kB\n")
    assert total_memory(meminfo) == 1 << 20
    meminfo.write_text("")
    with pytest.raises(FailedPrecondition):
        total_memory(meminfo)


def test_every_key_is_in_the_manual(tmp_path: Path) -> None:
    manual = Path(__file__).parents[2] / "docs" / "nodes.md"
    assert document(NodeConfig) in manual.read_text()
    file = tmp_path / "node.toml"
    file.write_text(
        'objects = "file:///x"\njoin_token = "join.token"\nstate = "state"\n'
        '[control]\nca = "ca.pem"\n'
    )
    config = load(NodeConfig, file)
    assert (config.state, config.control.ca) == (tmp_path / "state", tmp_path / "ca.pem")
