from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

import pytest

from appliance.core.errors import FailedPrecondition
from appliance.worker.private import PrivateFolder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_configuration_is_there_only_while_the_engine_starts(tmp_path: Path) -> None:
    folder = PrivateFolder(tmp_path)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.put_config({"a": 1})
    assert (folder.path / "config.json").read_text() == '{"a": 1}'
    folder.engine_is_up([])
    assert names(folder.path) == []
    folder.remove()
    assert names(tmp_path) == []


@pytest.mark.attack
def test_shared_segments_lose_their_names(tmp_path: Path) -> None:
    folder = PrivateFolder(tmp_path)
    for name in ("psm_ours", "psm_other"):
        (tmp_path / name).write_bytes(b"x" * 4096)
    with (tmp_path / "psm_ours").open("r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
        folder.engine_is_up([os.getpid(), 4194305])
        assert names(tmp_path) == [folder.path.name, "psm_other"]
        assert shared[:1] == b"x"


def test_what_a_killed_worker_left_is_removed(tmp_path: Path) -> None:
    # Process numbers end at 2^22 on Linux.
    (tmp_path / "appliance-worker-4194305-abc").mkdir()
    (tmp_path / f"appliance-worker-{os.getpid()}-abc").mkdir()
    (tmp_path / "other").mkdir()
    PrivateFolder(tmp_path).remove()
    assert names(tmp_path) == [f"appliance-worker-{os.getpid()}-abc", "other"]


def test_without_shared_memory_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition):
        PrivateFolder(tmp_path / "missing")
