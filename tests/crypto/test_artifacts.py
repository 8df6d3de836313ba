"""Artifacts: written whole or not at all, by one or by many, and refused when anything is off."""

import dataclasses
import errno
import json
import multiprocessing
import os
import random
import shutil
import socket
import stat
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from appliance.core.errors import (
    AlreadyExists,
    Exhausted,
    FailedPrecondition,
    InvalidInput,
    LeaseLost,
    NotFound,
    Stale,
    Tampered,
)
from appliance.crypto import artifacts
from appliance.crypto import folder as folder_module
from appliance.crypto.artifacts import ArtifactReader, ArtifactWriter, FileEntry, manifest_digest

KEY = bytes(range(32))
PROJECT, OBJECT = "research", "4f1c"
FILES = {"a.bin": b"first" * 100, "b.bin": b"", "c.json": b'{"n": 1}'}
LOCAL = fsspec.filesystem("file")


def writer(path: Path, *, uid: str = OBJECT, key: bytes = KEY, epoch: int = 0) -> ArtifactWriter:
    return ArtifactWriter(LOCAL, str(path), key, PROJECT, uid, epoch=epoch)


def reader(path: Path, *, uid: str = OBJECT, key: bytes = KEY, **more: Any) -> ArtifactReader:
    return ArtifactReader(LOCAL, str(path), key, PROJECT, uid, **more)


def make(
    path: Path, files: dict[str, bytes] = FILES, *, extra: dict[str, Any] | None = None, **more: Any
) -> bytes:
    artifact = writer(path, **more)
    for name, data in files.items():
        with artifact.create(name) as file:
            file.write(data)
    return artifact.finish(extra)


def contents(artifact: ArtifactReader) -> dict[str, bytes]:
    return {name: artifact.read_bytes(name) for name in artifact.files()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "objects" / PROJECT / OBJECT


# Writing and reading


@pytest.mark.parametrize("kind", ["local", "url", "memory"])
def test_what_was_written_is_read(kind: str, path: Path) -> None:
    fs = fsspec.filesystem("memory") if kind == "memory" else LOCAL
    where = {"local": str(path), "url": f"file://{path}/", "memory": f"/{path.parent.parent}/m"}[
        kind
    ]
    artifact = ArtifactWriter(fs, where, KEY, PROJECT, OBJECT, epoch=4)
    for name, data in FILES.items():
        with artifact.create(name) as file:
            file.write(data)
    artifact.write_json("index.json", {"text": "größer", "list": [1, 2.5, None]})
    manifest = artifact.finish({"step": 8})

    found = ArtifactReader(fs, where, KEY, PROJECT, OBJECT, digest=manifest_digest(manifest))

    assert found.files() == ["a.bin", "b.bin", "c.json", "index.json"]
    assert found.read_json("index.json") == {"text": "größer", "list": [1, 2.5, None]}
    assert {name: found.read_bytes(name) for name in FILES} == FILES
    assert found.entry("a.bin").plain_size == 500
    assert (found.epoch, found.extra, found.manifest["object"]) == (4, {"step": 8}, OBJECT)
    assert found.digest == manifest_digest(manifest)
    with found.open("a.bin") as file:
        file.seek(495)
        assert file.read() == b"first"


def test_a_missing_file_is_said(path: Path) -> None:
    make(path)
    with pytest.raises(NotFound):
        reader(path).open("d.bin")
    with pytest.raises(NotFound):
        reader(path).entry("manifest.json")


def test_names_and_values_are_checked(path: Path) -> None:
    artifact = writer(path)
    for name in ("../x", "a/b", "", ".x", "x\n"):
        with pytest.raises(InvalidInput):
            artifact.create(name)
    for value in (float("nan"), {1, 2}, "\ud800"):
        with pytest.raises(InvalidInput):
            artifact.write_json("x.json", value)
    with pytest.raises(InvalidInput):
        writer(path, key=b"short")
    with pytest.raises(InvalidInput):
        ArtifactWriter(LOCAL, "relative/folder", KEY, PROJECT, OBJECT)
    assert not path.exists()


def test_a_name_is_taken_once(path: Path) -> None:
    artifact = writer(path)
    with artifact.create("a.bin"), pytest.raises(AlreadyExists):
        artifact.create("a.bin")
    with pytest.raises(AlreadyExists):
        artifact.create("a.bin")
    with pytest.raises(AlreadyExists):
        artifact.create("manifest.json")


def test_a_failed_file_is_not_there_and_can_be_written_again(path: Path) -> None:
    artifact = writer(path)

    def fail() -> None:
        with artifact.create("a.bin") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(path.iterdir()) == []
    assert artifact.entries() == []

    with artifact.create("a.bin") as file:
        file.write(b"whole")
    file.close()
    file.abort()
    artifact.finish()

    assert contents(reader(path)) == {"a.bin": b"whole"}


def test_an_unfinished_artifact_is_not_there(path: Path) -> None:
    artifact = writer(path)
    with pytest.raises(FailedPrecondition, match="no files"):
        artifact.finish()
    with artifact.create("a.bin") as file:
        file.write(b"text")
        with pytest.raises(FailedPrecondition, match=r"a\.bin still open"):
            artifact.finish()
    with artifact.create("b.bin"), pytest.raises(FailedPrecondition, match=r"b\.bin still open"):
        artifact.finish()
    with pytest.raises(NotFound):
        reader(path)


def test_what_a_broken_attempt_left_does_not_disturb(path: Path) -> None:
    path.mkdir(parents=True)
    (path / ".a.bin.0123456789abcdef.partial").write_bytes(b"half")
    (path / "shard-00007.bin").write_bytes(b"of another layout")
    (path / "b.bin").symlink_to("/dev/zero")
    make(path)

    assert sorted(file.name for file in path.iterdir()) == [*sorted(FILES), "manifest.json"]
    assert contents(reader(path)) == FILES


def test_a_folder_in_the_way_is_said(path: Path) -> None:
    (path / "folder").mkdir(parents=True)
    with pytest.raises(FailedPrecondition, match="folder does not belong"):
        make(path)
    with pytest.raises(NotFound):
        reader(path)


def test_a_late_partial_file_is_no_file_of_the_artifact(path: Path) -> None:
    make(path)
    with writer(path).create("late.bin") as late:
        late.write(b"text")
        assert reader(path).files() == sorted(FILES)


def test_a_file_that_disappeared_is_noticed_at_the_end(path: Path) -> None:
    artifact = writer(path)
    with artifact.create("a.bin") as file:
        file.write(b"text")
    (path / "a.bin").unlink()

    with pytest.raises(FailedPrecondition, match="not there whole"):
        artifact.finish()


def test_files_and_folders_are_private(path: Path) -> None:
    umask = os.umask(0)
    try:
        make(path)
    finally:
        os.umask(umask)

    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


# Several writers


def rank(number: int, path: str) -> str:
    artifact = ArtifactWriter(LOCAL, path, KEY, PROJECT, OBJECT)
    for part in range(5):
        with artifact.create(f"rank-{number}-{part}.bin") as file:
            file.write(random.Random(number * 10 + part).randbytes(3000))
    return json.dumps([entry.as_json() for entry in artifact.entries()])


def test_several_ranks_write_one_artifact(path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
        gathered = list(pool.map(rank, range(4), [str(path)] * 4))
    with pytest.raises(NotFound):
        reader(path)

    leader = writer(path)
    leader.write_json("index.json", {"ranks": 4})
    for entries in gathered:
        leader.adopt(map(FileEntry.from_json, json.loads(entries)))
    leader.adopt(leader.entries())
    leader.finish()

    found = reader(path)
    assert len(found.files()) == 21
    for number in range(4):
        for part in range(5):
            expected = random.Random(number * 10 + part).randbytes(3000)
            assert found.read_bytes(f"rank-{number}-{part}.bin") == expected


def test_two_ranks_cannot_have_made_one_file(path: Path) -> None:
    one, two = writer(path), writer(path)
    for artifact in (one, two):
        with artifact.create("a.bin") as file:
            file.write(b"text")
    with pytest.raises(AlreadyExists):
        one.adopt(two.entries())
    with pytest.raises(AlreadyExists):
        one.adopt([FileEntry("manifest.json", 1, 1, "00" * 32)])
    with one.create("b.bin"), pytest.raises(AlreadyExists):
        one.adopt([FileEntry("b.bin", 1, 1, "00" * 32)])


@pytest.mark.attack
def test_a_writer_that_overwrote_another_one_is_noticed(path: Path) -> None:
    make(path, {"a.bin": b"one"})
    zombie = writer(path)
    with zombie.create("a.bin") as file:
        file.write(b"two")

    with pytest.raises(Stale):
        reader(path).read_bytes("a.bin")


@pytest.mark.attack
def test_an_older_epoch_changes_nothing_that_a_newer_one_finished(path: Path) -> None:
    zombie = writer(path, epoch=1)
    with zombie.create("z.bin") as file:
        file.write(b"zombie")
    late = zombie.create("a.bin")
    late.write(b"zombie")
    make(path, epoch=2)

    with pytest.raises(LeaseLost):
        late.close()
    with pytest.raises(LeaseLost):
        zombie.create("y.bin")
    with pytest.raises(LeaseLost):
        zombie.finish()

    assert (reader(path).epoch, contents(reader(path))) == (2, FILES)


def test_the_same_or_a_newer_epoch_may_write_again(path: Path) -> None:
    make(path, epoch=1)
    make(path, {"a.bin": b"again"}, epoch=1)
    make(path, {"b.bin": b"newer"}, epoch=2)

    assert (reader(path).epoch, contents(reader(path))) == (2, {"b.bin": b"newer"})


def test_a_broken_manifest_is_replaced(path: Path) -> None:
    make(path, key=bytes(32), epoch=9)
    make(path, epoch=1)

    assert reader(path).epoch == 1


# Attacks on what is stored


@pytest.mark.attack
def test_every_deleted_file_is_missed(path: Path) -> None:
    digest = manifest_digest(make(path))
    for name in FILES:
        kept = (path / name).read_bytes()
        (path / name).unlink()
        with pytest.raises(Tampered, match=f"{name} is missing") as caught:
            reader(path)
        assert caught.value.metadata["object"] == OBJECT
        (path / name).write_bytes(kept)
    (path / "manifest.json").unlink()
    with pytest.raises(Tampered, match="manifest is gone"):
        reader(path, digest=digest)


@pytest.mark.attack
def test_a_file_that_disappears_later_is_missed(path: Path) -> None:
    make(path)
    artifact = reader(path)
    (path / "a.bin").unlink()

    with pytest.raises(Tampered, match=r"a\.bin is missing"):
        artifact.read_bytes("a.bin")


@pytest.mark.attack
@pytest.mark.parametrize("name", ["d.bin", "modeling.py", ".hidden", "a.bin.partial", "ünlaut"])
def test_an_added_file_is_refused(path: Path, name: str) -> None:
    make(path)
    (path / name).write_bytes(b"text")

    with pytest.raises(Tampered, match="a file too many"):
        reader(path)


@pytest.mark.attack
def test_an_added_folder_is_refused(path: Path) -> None:
    make(path)
    (path / "folder").mkdir()

    with pytest.raises(Tampered, match="a file too many"):
        reader(path)


@pytest.mark.attack
def test_renamed_and_swapped_files_are_refused(path: Path) -> None:
    same = {"a.bin": b"one", "b.bin": b"two"}
    make(path, same)
    (path / "a.bin").rename(path / "x.bin")
    with pytest.raises(Tampered):
        reader(path)
    (path / "b.bin").rename(path / "a.bin")
    (path / "x.bin").rename(path / "b.bin")
    for name in same:
        with pytest.raises(Tampered, match="sealed for another place"):
            reader(path).read_bytes(name)


@pytest.mark.attack
def test_files_of_two_steps_cannot_be_mixed(path: Path) -> None:
    steps = [path / "step-00000008", path / "step-00000016"]
    for step in steps:
        make(step, {"a.bin": b"one", "b.bin": b"two"}, uid=f"{OBJECT}/{step.name}")
    shutil.copy(steps[0] / "a.bin", steps[1] / "a.bin")
    with pytest.raises(Tampered, match="sealed for another place"):
        reader(steps[1], uid=f"{OBJECT}/{steps[1].name}").read_bytes("a.bin")

    shutil.copy(steps[0] / "manifest.json", steps[1] / "manifest.json")
    with pytest.raises(Tampered, match="belongs to another artifact"):
        reader(steps[1], uid=f"{OBJECT}/{steps[1].name}")


@pytest.mark.attack
def test_files_of_two_epochs_cannot_be_mixed(path: Path, tmp_path: Path) -> None:
    files = {"a.bin": b"one", "b.bin": b"two"}
    make(path, files, epoch=1)
    shutil.copytree(path, tmp_path / "old")
    make(path, {name: data[::-1] for name, data in files.items()}, epoch=2)

    shutil.copy(tmp_path / "old" / "a.bin", path / "a.bin")
    assert reader(path).read_bytes("b.bin") == b"owt"
    with pytest.raises(Stale) as caught:
        reader(path).read_bytes("a.bin")
    assert caught.value.metadata["file"] == "a.bin"


@pytest.mark.attack
def test_a_rolled_back_folder_is_stale_for_who_knows_the_digest(path: Path, tmp_path: Path) -> None:
    make(path, {"a.bin": b"old"})
    shutil.copytree(path, tmp_path / "old")
    digest = manifest_digest(make(path, {"a.bin": b"new"}))
    assert contents(reader(path, digest=digest)) == {"a.bin": b"new"}
    shutil.rmtree(path)
    shutil.copytree(tmp_path / "old", path)

    with pytest.raises(Stale) as caught:
        reader(path, digest=digest)
    assert caught.value.metadata["object"] == OBJECT


@pytest.mark.attack
def test_an_artifact_of_another_place_or_key_is_refused(path: Path) -> None:
    make(path)
    with pytest.raises(Tampered):
        reader(path, uid="4f1d")
    with pytest.raises(Tampered):
        reader(path, key=bytes(32))
    with pytest.raises(Tampered):
        ArtifactReader(LOCAL, str(path), KEY, "sales", OBJECT)


@pytest.mark.attack
def test_every_changed_byte_of_a_folder_is_refused(path: Path) -> None:
    make(path, {"a.bin": b"text", "b.bin": b""})
    for file in sorted(path.iterdir()):
        original = file.read_bytes()
        for index in range(len(original)):
            changed = bytearray(original)
            changed[index] ^= 0x10
            file.write_bytes(changed)
            with pytest.raises(Tampered):
                contents(reader(path))
        for other in (original[:-1], original + b"\0", b""):
            file.write_bytes(other)
            with pytest.raises(Tampered):
                contents(reader(path))
        file.write_bytes(original)

    assert contents(reader(path)) == {"a.bin": b"text", "b.bin": b""}


def a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def a_socket(path: Path) -> None:
    path.unlink()
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.attack
@pytest.mark.parametrize("name", ["a.bin", "manifest.json"])
@pytest.mark.parametrize("swap", [a_link, a_socket, a_pipe, a_folder])
def test_what_is_no_plain_file_is_refused(
    path: Path, name: str, swap: Callable[[Path], None]
) -> None:
    make(path)
    artifact = reader(path)
    swap(path / name)

    with pytest.raises(Tampered):
        reader(path)
    if name != "manifest.json":
        with pytest.raises(Tampered, match="not a plain file"):
            artifact.open(name)


@pytest.mark.attack
def test_no_plaintext_is_ever_in_the_folder(path: Path) -> None:
    canary = random.Random(1).randbytes(32)
    artifact = writer(path)
    with artifact.create("a.bin") as file:
        for _ in range(40_000):
            file.write(canary)
        assert found_in(path, canary) == []
    artifact.finish()

    assert sum(file.stat().st_size for file in path.iterdir()) > 40_000 * 32
    assert found_in(path, canary) == []
    assert found_in(path, KEY) == []
    assert reader(path).read_bytes("a.bin") == canary * 40_000


def found_in(path: Path, canary: bytes) -> list[str]:
    return [file.name for file in path.iterdir() if canary in file.read_bytes()]


# Power cuts, crashes and full disks


def test_everything_is_durable_before_it_has_a_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    replace, fsync = Path.replace, os.fsync

    def note_fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        events.append(f"sync {name.split('.')[1] if '.' in name else name}")
        fsync(descriptor)

    def note_replace(old: Path, new: Path) -> Path:
        events.append(f"name {new.stem}")
        return replace(old, new)

    def note_sync_dir(folder: Path) -> None:
        events.append("sync folder" if folder == path else "sync above")
        descriptor = os.open(folder, os.O_RDONLY)
        fsync(descriptor)
        os.close(descriptor)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    monkeypatch.setattr(folder_module, "sync_dir", note_sync_dir)
    make(path, {"a.bin": b"one", "b.bin": b"two"})

    assert [event for event in events if event != "sync above"] == [
        *("sync a", "name a", "sync folder"),
        *("sync b", "name b", "sync folder"),
        *("sync manifest", "name manifest", "sync folder"),
    ]
    assert events[:3] == ["sync above"] * 3


def crash_at(step: int, path: Path) -> bool:
    """Write an artifact in a process that dies before its n-th step; True if it came to that."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    seen = 0

    def die(event: str, _arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in {"open", "os.mkdir", "os.rename", "os.remove", "os.scandir"}:
            seen += 1
            if seen == step:
                os._exit(9)

    try:
        sys.addaudithook(die)
        make(path, {"a.bin": b"new" * 500, "b.bin": b"new"}, epoch=2)
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.attack
def test_a_crash_at_any_step_leaves_all_or_nothing(tmp_path: Path) -> None:
    step, outcomes = 0, []
    while True:
        step += 1
        path = tmp_path / str(step) / OBJECT
        died = crash_at(step, path)
        try:
            outcomes.append(contents(reader(path)) == {"a.bin": b"new" * 500, "b.bin": b"new"})
        except NotFound:
            outcomes.append(False)
        make(path, {"c.bin": b"after"}, epoch=2)
        assert contents(reader(path)) == {"c.bin": b"after"}
        if not died:
            break

    assert step > 12
    assert outcomes[-1] is True
    assert outcomes[:-2] == [False] * (step - 2)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("fails", range(1, 7))
def test_a_full_disk_is_one_sentence_and_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, fails: int, number: int
) -> None:
    make(path, {"a.bin": b"old"}, epoch=1)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    fsync, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == fails:
            raise OSError(number, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(Exhausted, match="free some"):
            make(path, {"b.bin": b"new", "c.bin": b"new"}, epoch=1)

    after = {file.name: file.read_bytes() for file in path.iterdir()}
    assert not [name for name in after if name.endswith(".partial")]
    if fails < 5:
        assert after["a.bin"] == before["a.bin"]
        assert after["manifest.json"] == before["manifest.json"]


def test_a_disk_that_is_full_in_the_middle_of_a_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = writer(path)
    real = os.fdopen

    def full(descriptor: int, *arguments: Any, **more: Any) -> Any:
        os.close(descriptor)
        return real(os.open("/dev/full", os.O_WRONLY), *arguments, **more)

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(Exhausted, match="free some"):
        artifact.create("a.bin")

    assert list(path.iterdir()) == []


@pytest.mark.attack
@pytest.mark.parametrize("said", [0, 499, 501])
def test_a_file_with_more_or_less_in_it_than_its_manifest_says_is_refused(
    path: Path, said: int
) -> None:
    """The manifest is the writer's, and that may be a job: readers bound what they read by it."""
    artifact = writer(path)
    for name, data in FILES.items():
        with artifact.create(name) as file:
            file.write(data)
    artifact._entries["a.bin"] = dataclasses.replace(artifact._entries["a.bin"], plain_size=said)
    artifact.finish()
    found = reader(path)
    with pytest.raises(Tampered, match=f"has 500 bytes, not the {said} said"):
        found.read_bytes("a.bin")
    assert found.read_bytes("b.bin") == b""


@pytest.mark.attack
def test_what_is_too_large_is_not_read_whole(path: Path) -> None:
    make(path, {"index.json": bytes(artifacts.MAX_WHOLE + 1)})
    with pytest.raises(InvalidInput, match="has 67108865 bytes, 67108864 are allowed"):
        reader(path).read_json("index.json")
