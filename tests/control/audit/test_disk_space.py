"""Room that is kept, and a word before there is none."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from appliance.control.audit.disk_space import LOW, DiskSpaceWatch
from appliance.control.audit.growing_file import MIN_RESERVE, Reserve, fitting_size

MIB = 1 << 20


@pytest.mark.parametrize(
    ("disk", "free", "held", "fits"),
    [
        (250_000, 100_000, 0, 64),
        (250_000, 128, 0, 64),
        (250_000, 127, 0, 32),
        (250_000, 70, 64, 64),
        (250_000, 100, 4, 32),
        (250_000, 0, 4, 4),
        (250_000, 0, 64, 32),
        (2048, 2000, 0, 32),
        (64, 60, 0, 4),
        (8, 1, 0, 4),
    ],
)
def test_a_reserve_leaves_a_disk_as_much_as_it_takes(
    disk: int, free: int, held: int, fits: int
) -> None:
    found = fitting_size(64 * MIB, MIN_RESERVE, disk * MIB, free * MIB, held * MIB)
    assert found == fits * MIB


def test_the_reserve_of_the_release_before_grows_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "reserve"
    path.write_bytes(b"")
    os.truncate(path, MIN_RESERVE)
    reserve = Reserve(path, 16 * MIB, MIN_RESERVE)
    reserve.take()
    assert reserve.size == path.stat().st_size == 16 * MIB
    assert path.stat().st_blocks * 512 >= 16 * MIB


@pytest.mark.parametrize("held", [0, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("room", [0, 1, 4, 8, 15, 28, 31, 60, 63, 96, 100, 124, 127, 128, 4000])
def test_a_start_is_not_refused_for_a_reserve_that_wants_to_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int, room: int
) -> None:
    """A control plane that had what is free now served: it does so after a restart, too."""
    asked: list[int] = []
    path = tmp_path / "reserve"
    if held:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, held * 1024)

    class Small(Reserve):
        def _room(self) -> int:
            return room * 1024

    monkeypatch.setattr(os, "posix_fallocate", lambda _file, _start, size: asked.append(size))
    reserve = Small(path, 64 * 1024, 4 * 1024)
    if room < (max(held // 2, 4) if held else 8):
        # It counted as full before, too.
        with pytest.raises(OSError, match="No space left"):
            reserve.take()
        return
    reserve.take()
    assert asked == [2 * reserve.size]
    assert 2 * reserve.size <= (room + held) * 1024


class Recorded:
    """What was recorded."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, object]] = []

    def check(self) -> None:
        raise AssertionError("nothing appears")

    def record(self, what: str, resource: str, **made: object) -> None:
        raise AssertionError("nothing appears")

    def note(self, what: str, resource: str, outcome: str, **made: object) -> None:
        self.notes.append((what, made["free_bytes"]))


def test_a_disk_that_is_low_is_said_once_until_it_has_room_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    free, records = [1000 * MIB], Recorded()
    room = DiskSpaceWatch(tmp_path, 100 * MIB, records, lambda _: free[0])
    for mib in (1000, 99, 98, 105, 99, 110, 97, 96):
        free[0] = mib * MIB
        room.check()
    assert records.notes == [(LOW, 99 * MIB), (LOW, 97 * MIB)]
    lines = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 2
    assert "99 MiB left" in lines[0].getMessage()
    assert "appliance audit archive" in lines[0].getMessage()


def test_a_threshold_of_zero_says_nothing(tmp_path: Path) -> None:
    records = Recorded()
    DiskSpaceWatch(tmp_path, 0, records, lambda _: 0).check()
    assert records.notes == []
