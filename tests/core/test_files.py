"""Durable files and private ones."""

import errno
import os
import stat
from pathlib import Path

import pytest

from appliance.core import files
from appliance.core.errors import Exhausted, FailedPrecondition
from appliance.core.files import make_private_dir, open_private, read_secret, write_durably


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_write_and_replace(tmp_path: Path) -> None:
    target = tmp_path / "key"
    write_durably(target, b"one")
    write_durably(target, b"two")
    assert target.read_bytes() == b"two"
    assert mode(target) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_the_mode_is_exact_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_durably(tmp_path / "ca.pem", b"x", mode=0o644)
    finally:
        os.umask(before)
    assert mode(tmp_path / "ca.pem") == 0o644


@pytest.mark.attack
def test_a_private_file_is_private_under_every_umask_and_also_when_it_was_open(
    tmp_path: Path,
) -> None:
    before = os.umask(0)
    try:
        (tmp_path / "old.log").write_bytes(b"one ")
        for name in ("old.log", "new.log"):
            with os.fdopen(open_private(tmp_path / name, os.O_WRONLY | os.O_APPEND), "wb") as file:
                file.write(b"two")
    finally:
        os.umask(before)
    assert (tmp_path / "old.log").read_bytes() == b"one two"
    assert {mode(path) for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.attack
def test_a_private_file_is_not_opened_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic"):
        open_private(tmp_path / "link", os.O_WRONLY)


def test_order_of_the_durable_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(descriptor: int) -> None:
        steps.append("dir" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_sync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    write_durably(tmp_path / "f", b"x")
    assert steps == ["file", "rename", "dir"]


@pytest.mark.parametrize("step", ["write", "fsync"])
@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, Exhausted), (errno.EDQUOT, Exhausted), (errno.EIO, OSError)],
)
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int, error: type[Exception]
) -> None:
    target = tmp_path / "f"
    write_durably(target, b"old")

    def fail(*_: object) -> int:
        raise OSError(number, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(error):
            write_durably(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_real_full_disk() -> None:
    with pytest.raises(OSError, match="No space left"), Path("/dev/full").open("wb", 0) as full:
        files.write_all(full.fileno(), b"x")


def test_short_writes_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))
    write_durably(tmp_path / "f", b"0123456789")
    assert (tmp_path / "f").read_bytes() == b"0123456789"


def test_read_secret(tmp_path: Path) -> None:
    write_durably(tmp_path / "key", b"secret")
    assert read_secret(tmp_path / "key") == b"secret"


@pytest.mark.attack
@pytest.mark.parametrize("wrong", [0o640, 0o604, 0o660, 0o602, 0o610, 0o601, 0o644, 0o777])
def test_an_open_secret_is_refused(tmp_path: Path, wrong: int) -> None:
    write_durably(tmp_path / "key", b"secret", mode=wrong)
    with pytest.raises(FailedPrecondition, match="chmod 600"):
        read_secret(tmp_path / "key")


@pytest.mark.attack
def test_no_link_is_followed(tmp_path: Path) -> None:
    write_durably(tmp_path / "real", b"secret")
    (tmp_path / "key").symlink_to(tmp_path / "real")
    with pytest.raises(FailedPrecondition, match="symbolic link"):
        read_secret(tmp_path / "key")
    with pytest.raises(FailedPrecondition, match="not a regular file"):
        read_secret(tmp_path)
    with pytest.raises(FailedPrecondition, match="there is no file"):
        read_secret(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(FailedPrecondition, match="not a regular file"):
        read_secret(tmp_path / "pipe")


@pytest.mark.attack
def test_the_owner_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_durably(tmp_path / "key", b"secret")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(FailedPrecondition, match="belongs to user"):
        read_secret(tmp_path / "key")


def test_private_folders(tmp_path: Path) -> None:
    folder = make_private_dir(tmp_path / "a" / "b")
    assert folder == tmp_path / "a" / "b"
    assert (mode(folder), mode(folder.parent)) == (0o700, 0o700)
    assert make_private_dir(folder) == folder
    folder.chmod(0o750)
    with pytest.raises(FailedPrecondition, match="chmod 700"):
        make_private_dir(folder)


@pytest.mark.attack
def test_a_link_or_a_file_is_no_private_folder(tmp_path: Path) -> None:
    make_private_dir(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_bytes(b"")
    for wrong in ("link", "file"):
        with pytest.raises(FailedPrecondition, match="not a folder"):
            make_private_dir(tmp_path / wrong)
