"""A version on its way into a folder: whole, or nothing under its name; gone on with when cut."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from appliance.api.data.v1 import download_pb2
from appliance.client import downloads
from appliance.client.downloads import Download, Downloaded
from appliance.core.errors import (
    AlreadyExists,
    ApplianceError,
    Conflict,
    Denied,
    Exhausted,
    FailedPrecondition,
    Tampered,
    Unavailable,
)
from tests.fakes.disk import small_disk

Part = download_pb2.DownloadPart
NAME = "projects/demo/models/base/versions/1"
FILES = {"config.json": b"{}", "empty.txt": b"", "model.safetensors": bytes(range(256)) * 40}
PIECE = 1000


@dataclass
class Server:
    """Sends a version as the control plane does; `cuts` end the next streams after so many parts.

    A cut is a number of parts and what is raised then.
    """

    files: Mapping[str, bytes] = field(default_factory=lambda: dict(FILES))
    cuts: list[tuple[int, ApplianceError]] = field(default_factory=list)
    asked: list[tuple[str, int]] = field(default_factory=list)
    name: str = NAME

    def begin(self, file: str, offset: int) -> Iterator[Part]:
        self.asked.append((file, offset))
        parts = self._parts(file or min(self.files, default=""), offset)
        if not self.cuts:
            yield from parts
            return
        left, error = self.cuts.pop(0)
        for _ in range(left):
            yield next(parts)
        raise error

    def _parts(self, file: str, offset: int) -> Iterator[Part]:
        listed = [
            download_pb2.DownloadedFile(file=name, size_bytes=len(self.files[name]))
            for name in sorted(self.files)
        ]
        content = hashlib.sha256(b"".join(self.files[name] for name in sorted(self.files)))
        digest = content.hexdigest()
        listing = download_pb2.DownloadListing(name=self.name, manifest_digest=digest, files=listed)
        yield Part(listing=listing)
        yield Part(data=b"")
        for name in sorted(self.files):
            if name < file:
                continue
            data = self.files[name]
            for start in range(offset if name == file else 0, len(data), PIECE):
                yield Part(data=data[start : start + PIECE])
            end = download_pb2.DownloadedFile(
                file=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
            )
            yield Part(end=end)


def get(server: Server, target: Path, *, force: bool = False, **settings: Any) -> Downloaded:
    settings = {"pause": lambda _: None} | settings
    with Download(NAME, target, force=force, say=lambda _: None) as work:
        return work.run(server.begin, **settings)


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def hidden(target: Path) -> Path:
    return target.parent / f".{target.name}.download"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model"


def test_all_files_are_there_and_nothing_else(target: Path) -> None:
    told: list[tuple[int, int]] = []
    found = get(Server(), target, advance=lambda done, total: told.append((done, total)))
    assert held(target) == FILES
    assert (found.name, found.size) == (NAME, sum(map(len, FILES.values())))
    assert told[-1] == (found.size, found.size)
    # What was a secret there is this user's alone here.
    assert target.stat().st_mode & 0o777 == 0o700
    assert list(target.parent.iterdir()) == [target]


def test_an_empty_folder_is_filled_and_one_that_holds_something_is_left(target: Path) -> None:
    target.mkdir()
    get(Server(), target)
    server = Server()
    with pytest.raises(AlreadyExists, match="--force"):
        get(server, target)
    assert server.asked == []
    (target / "notes.txt").write_text("mine")
    (target / "config.json").write_text("old")
    get(server, target, force=True)
    assert held(target) == FILES | {"notes.txt": b"mine"}
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to(path.parent)])
def test_what_is_no_folder_is_not_replaced(target: Path, make: Any) -> None:
    make(target)
    with pytest.raises(AlreadyExists, match="is no folder"):
        get(Server(), target, force=True)
    with pytest.raises(FailedPrecondition, match="there is no folder"):
        get(Server(), target.parent / "none" / "model")


@pytest.mark.parametrize("after", range(1, 17))
def test_a_link_that_breaks_anywhere_costs_no_byte(target: Path, after: int) -> None:
    server = Server(cuts=[(after, Unavailable("the link broke"))])
    get(server, target)
    assert held(target) == FILES
    (first, second) = server.asked
    assert first == ("", 0)
    if after > 6:
        assert second == ("model.safetensors", min((after - 5) * PIECE, len(FILES[second[0]])))


def test_a_stream_that_just_ends_is_gone_on_with(target: Path) -> None:
    server = Server()
    whole = server.begin

    def begin(file: str, offset: int) -> Iterator[Part]:
        parts = list(whole(file, offset))
        yield from parts[:5] if len(server.asked) == 1 else parts

    with Download(NAME, target, force=False, say=lambda _: None) as work:
        work.run(begin, pause=lambda _: None)
    assert held(target) == FILES


def test_it_gives_up_after_a_time_without_a_byte_and_keeps_what_came(target: Path) -> None:
    broken = Unavailable("the link broke")
    server = Server(cuts=[(8, broken), (1, broken), (1, broken)])
    with pytest.raises(Unavailable):
        get(server, target, patience=0.0)
    assert not target.exists()
    # The same command later: from the byte at which it was.
    server.cuts.clear()
    get(server, target)
    assert server.asked[-1] == ("model.safetensors", 3000)
    assert held(target) == FILES


def test_too_many_downloads_are_waited_for(target: Path) -> None:
    waits: list[float] = []
    full = Exhausted("as many downloads run as may at a time", retry_after=3.0)
    get(Server(cuts=[(0, full)]), target, pause=waits.append)
    assert waits == [3.0]


@pytest.mark.attack
def test_a_right_that_was_taken_away_is_not_waited_for(target: Path) -> None:
    server = Server(cuts=[(8, Denied("not any more"))])
    with pytest.raises(Denied):
        get(server, target)
    assert len(server.asked) == 1
    assert not target.exists()
    # Nothing is left of a download of which nothing came.
    other = target.parent / "other"
    with pytest.raises(Denied):
        get(Server(cuts=[(0, Denied("no"))]), other)
    assert not hidden(other).exists()


def test_another_content_begins_anew(target: Path) -> None:
    broken = Unavailable("the link broke")
    with pytest.raises(Unavailable):
        get(Server(cuts=[(9, broken)]), target, patience=0.0)
    other = dict.fromkeys(FILES, b"other") | {"more.txt": b"more"}
    get(Server(other), target)
    assert held(target) == other


@pytest.mark.parametrize("after", range(4))
def test_one_that_is_killed_while_it_begins_anew_is_in_nobodys_way(
    target: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Whatever is deleted first, what is left is known as a download."""
    with pytest.raises(Unavailable):
        get(Server(cuts=[(6, Unavailable("away"))]), target, patience=0)
    left, unlink = list(range(after)), Path.unlink

    def killed(path: Path, *, missing_ok: bool = False) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        unlink(path, missing_ok=missing_ok)

    other = Server(files={**FILES, "config.json": b"[]"})
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Path, "unlink", killed)
        get(other, target)
    get(other, target)
    assert held(target) == other.files


def test_what_was_spoilt_here_meanwhile_comes_again(target: Path) -> None:
    server = Server(cuts=[(9, Unavailable("the link broke"))])
    with pytest.raises(Unavailable):
        get(server, target, patience=0.0)
    partial = hidden(target) / "model.safetensors.partial"
    partial.write_bytes(b"\0" * partial.stat().st_size)
    (hidden(target) / "config.json").unlink()
    get(server, target)
    assert held(target) == FILES
    assert server.asked[-1] == ("model.safetensors", 0)


@pytest.mark.attack
def test_what_the_disk_did_not_keep_gets_no_name(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(cuts=[(10, Unavailable("the link broke"))])
    with pytest.raises(Unavailable):
        get(server, target, patience=0.0)
    (hidden(target) / "config.json").write_bytes(b"[]")
    with pytest.raises(Tampered, match=r"not on the disk as it was written"):
        get(server, target)
    assert not target.exists()
    get(server, target)
    assert held(target) == FILES


@pytest.mark.attack
@pytest.mark.parametrize(
    ("server", "why"),
    [
        (Server({"../evil": b"x"}), "which no file is called"),
        (Server({"/etc/cron.d/evil": b"x"}), "which no file is called"),
        (Server({".state.json": b"x"}), "which no file is called"),
        (Server({}), "cannot be one"),
        (Server(name="projects/demo/models/base/versions/2"), "instead of"),
    ],
)
def test_a_server_writes_nowhere_else(target: Path, server: Server, why: str) -> None:
    with pytest.raises(Tampered, match=why):
        get(server, target)
    assert not target.exists()
    assert not (target.parent / "evil").exists()


@pytest.mark.attack
def test_a_digest_that_is_wrong_twice_ends_it(target: Path) -> None:
    class Lying(Server):
        def _parts(self, file: str, offset: int) -> Iterator[Part]:
            for part in super()._parts(file, offset):
                if part.end.file == "config.json":
                    part.end.sha256 = "0" * 64
                yield part

    server = Lying()
    with pytest.raises(Tampered, match="did not come as it was sent"):
        get(server, target)
    assert len(server.asked) == 2
    assert not target.exists()


def test_a_full_disk_keeps_what_came_and_says_what_to_do(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        target = disk / "model"
        large = {"a.bin": os.urandom(700_000)}
        (disk / "filler").write_bytes(bytes(500_000))
        with pytest.raises(Exhausted, match=r"700,000 bytes, and the disk .* has room for"):
            get(Server(large), target)
        assert not target.exists()


def test_a_disk_that_fills_up_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "free_bytes", lambda _: 1 << 40)
    with small_disk(tmp_path / "disk", 1) as disk:
        target = disk / "model"
        server = Server({"a.bin": os.urandom(700_000)})
        (disk / "filler").write_bytes(bytes(500_000))
        with pytest.raises(Exhausted, match=r"no space left for .*: free some space"):
            get(server, target)
        assert not target.exists()
        (disk / "filler").unlink()
        get(server, target)
        assert server.asked[-1][1] > 100_000
        assert held(target) == server.files


def test_two_at_a_time_and_what_is_in_the_way(target: Path) -> None:
    with (
        Download(NAME, target, force=False, say=lambda _: None),
        pytest.raises(Conflict, match="another command downloads"),
    ):
        get(Server(), target)
    hidden(target).mkdir(mode=0o700)
    (hidden(target) / "mine.txt").write_text("mine")
    with pytest.raises(FailedPrecondition, match="is in the way"):
        get(Server(), target)
    assert (hidden(target) / "mine.txt").read_text() == "mine"


@pytest.mark.attack
def test_files_in_a_folder_that_others_may_read_are_this_users_alone(target: Path) -> None:
    target.mkdir(mode=0o755)
    (target / "other.txt").write_text("kept")
    get(Server(), target, force=True)
    assert {(target / name).stat().st_mode & 0o777 for name in FILES} == {0o600}


@pytest.mark.attack
def test_a_folder_in_the_place_of_a_file_is_said_before_anything_is_replaced(target: Path) -> None:
    target.mkdir()
    (target / "config.json").write_bytes(b"old")
    (target / "model.safetensors").mkdir()
    with pytest.raises(AlreadyExists, match=r"model\.safetensors is a folder: move it"):
        get(Server(), target, force=True)
    assert (target / "config.json").read_bytes() == b"old"


@pytest.mark.attack
def test_a_name_under_which_another_file_comes_is_refused(target: Path) -> None:
    with pytest.raises(Tampered, match=r"which no file is called"):
        get(Server(files={"a": b"345", "a.partial": b"12"}), target)
