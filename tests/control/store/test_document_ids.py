"""Ids of documents on disk: each once, nothing readable, made again when it is not believed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pysqlite3 import dbapi2 as sqlite

from appliance.control.store.document_ids import DocumentIds
from appliance.core.errors import Unavailable

KEY = bytes(32)


@pytest.fixture(params=["file", "temporary"])
def ids(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DocumentIds]:
    path = tmp_path / "a.ids" if request.param == "file" else None
    with closing(DocumentIds(path, KEY)) as made:
        yield made


def test_an_id_is_there_once(ids: DocumentIds) -> None:
    assert ids.add(0, ["a", "b"]) is None
    assert ids.add(1, []) is None
    assert ids.add(1, []) is None
    assert ids.add(1, ["c", "b", "d"]) == 1
    assert ids.add(1, ["c", "d", "c"]) == 2
    # What was refused left nothing.
    assert ids.add(1, ["c", "d"]) is None
    ids.forget(0)
    assert ids.add(2, ["a", "b"]) is None


def test_what_is_not_as_the_parts_are_is_found(ids: DocumentIds) -> None:
    for part in range(3):
        ids.add(part, [f"{part}", f"{part}+"])
    assert ids.reconcile({0: 2, 1: 3, 3: 1}) == [1, 3]
    assert ids.add(1, ["1", "1+", "2"]) is None
    assert ids.reconcile({0: 2, 1: 3}) == []


@pytest.mark.attack
def test_no_id_can_be_read_and_another_key_has_other_digests(tmp_path: Path) -> None:
    found = []
    for key in (KEY, b"\1" * 32):
        path = tmp_path / f"{key[0]}.ids"
        with closing(DocumentIds(path, key)) as made:
            made.add(0, ["personnel/alice.txt"])
        assert b"alice" not in path.read_bytes()
        with closing(sqlite.connect(path)) as raw:
            found += raw.execute("SELECT digest FROM id").fetchall()
    assert len(set(found)) == 2


def test_a_file_of_before_the_last_boot_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.ids"
    with closing(DocumentIds(path, KEY)) as made:
        made.add(0, ["a"])
    with closing(DocumentIds(path, KEY)) as again:
        assert again.reconcile({0: 1}) == []
    with closing(sqlite.connect(path)) as raw:
        raw.execute("UPDATE boot SET id = 'before'")
        raw.commit()
    with closing(DocumentIds(path, KEY)) as again:
        assert again.reconcile({0: 1}) == [0]


def test_a_broken_file_is_deleted_and_made_again(tmp_path: Path) -> None:
    path = tmp_path / "a.ids"
    path.write_bytes(b"rubbish" * 1000)
    with pytest.raises(Unavailable, match="made again"):
        DocumentIds(path, KEY)
    with closing(DocumentIds(path, KEY)) as made:
        assert made.reconcile({0: 1}) == [0]


def test_a_temporary_one_is_a_file_without_a_name() -> None:
    gc.collect()
    made = DocumentIds(None, KEY)
    links = [each for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    mine = [name for name in (str(link.readlink()) for link in links) if ".ids" in name]
    assert [name.endswith("(deleted)") for name in mine] == [True]
    made.close()
