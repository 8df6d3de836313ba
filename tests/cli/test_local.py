import errno
import os
import stat
from pathlib import Path

import pytest

from appliance.cli import local
from appliance.cli.local import Local
from appliance.core.data_directory import KEPT
from appliance.core.errors import Exhausted, FailedPrecondition, NotFound
from tests.fakes.disk import filled, small_disk

CONTROL = '[listen]\napi = "127.0.0.1:1"\nmachines = "127.0.0.1:2"\nmetrics = "127.0.0.1:3"\n'
NODE = 'health = "127.0.0.1:4"\nmetrics = "127.0.0.1:5"\n'
GATEWAY = 'metrics = "127.0.0.1:8"\n[listen]\ngrpc = "127.0.0.1:6"\nopenai = "127.0.0.1:7"\n'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, text in {
        "control.toml": CONTROL,
        "node/node.toml": NODE,
        "gateway/gateway.toml": GATEWAY,
    }.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(text)
    for name in KEPT:
        (tmp_path / "data" / name).touch()
    (tmp_path / "data").chmod(0o700)
    return tmp_path / "data"


def test_the_processes_of_a_data_directory(data: Path) -> None:
    local = Local(data)
    control, node, gateway = local.programs()
    assert (control.name, control.health, control.ca) == ("control", "127.0.0.1:1", data / "ca.pem")
    assert (node.name, node.health, node.ca) == ("node", "127.0.0.1:4", None)
    assert (gateway.name, gateway.health) == ("gateway", "127.0.0.1:6")
    ports = [address.rpartition(":")[2] for p in local.programs() for address, _ in p.listens]
    assert ports == ["1", "2", "3", "4", "5", "6", "7", "8"]
    assert control.listens[0][1] == "listen.api in control.toml"
    assert [each.name for each in local.programs() if not each.vital] == ["node"]
    assert local.programs(node=False) == (control, gateway)


def test_a_folder_without_an_appliance_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"`appliance init --data-dir {tmp_path} --admin NAME`"):
        Local(tmp_path).programs()


def test_a_node_whose_configuration_was_lost_can_be_left_out(data: Path) -> None:
    (data / "node" / "node.toml").unlink()
    with pytest.raises(FailedPrecondition, match=r"`appliance up --no-node`"):
        Local(data).programs()
    assert [each.name for each in Local(data).programs(node=False)] == ["control", "gateway"]
    assert Local(data).api == "127.0.0.1:1"


@pytest.mark.parametrize("text", ["[listen", "[listen]\nmachines = 'x:1'\n", "listen = 3\n"])
def test_a_broken_configuration_is_named(data: Path, text: str) -> None:
    (data / "control.toml").write_text(text)
    with pytest.raises(FailedPrecondition):
        Local(data).programs()


def test_only_one_runs_an_appliance(data: Path) -> None:
    local = Local(data)
    assert local.supervisor() is None
    with local.only_one():
        assert Local(data).supervisor() == os.getpid()
        with pytest.raises(FailedPrecondition, match="already running"), Local(data).only_one():
            pass
    assert local.supervisor() is None


def test_a_full_disk_is_one_sentence(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("appliance.cli.local.os.write", full)
        with pytest.raises(Exhausted, match="free some space"), Local(data).only_one():
            raise AssertionError("it runs")
    with Local(data).only_one():
        assert Local(data).supervisor() == os.getpid()


def test_a_stale_file_is_no_running_appliance(data: Path) -> None:
    (data / "run").mkdir()
    (data / "run" / "supervisor.pid").write_text("1")
    assert Local(data).supervisor() is None


def test_a_log_that_has_grown_large_becomes_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LOG_BYTES", 100)
    path, before = tmp_path / "node.log", tmp_path / "node.log.1"
    local.cut_log(path)
    assert list(tmp_path.iterdir()) == []
    with local.log_file(path) as log:
        for text in (b"a" * 60, b"b" * 60, b"c" * 60):
            log.write(text)
            log.flush()
            local.cut_log(path)
        # Who holds it open goes on at its beginning.
        assert (path.read_bytes(), before.read_bytes()) == (b"c" * 60, b"a" * 60 + b"b" * 60)
        log.write(b"d" * 60)
        log.flush()
        local.cut_log(path)
        assert (path.read_bytes(), before.read_bytes()) == (b"", b"c" * 60 + b"d" * 60)
    assert stat.S_IMODE(before.stat().st_mode) == 0o600


def test_a_log_is_emptied_also_when_there_is_no_room_for_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LOG_BYTES", 100)
    with small_disk(tmp_path / "disk", 1) as disk:
        path = disk / "node.log"
        path.write_bytes(b"a" * 200_000)
        with filled(disk):
            local.cut_log(path)
            assert [each.name for each in disk.iterdir()] == ["filler", "node.log"]
        assert path.stat().st_size == 0
