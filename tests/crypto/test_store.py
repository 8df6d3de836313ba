"""What a process opens because its orders say so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.core.errors import InvalidInput, NotFound, Stale
from appliance.crypto import folder
from appliance.crypto.artifacts import ArtifactWriter, manifest_digest
from appliance.crypto.floe import SEGMENT_SIZE
from appliance.crypto.store import Artifact, ArtifactStore

KEY = bytes(range(32))


def sealed(root: Path) -> Artifact:
    store = ArtifactStore.at(f"file://{root}/")
    writer = ArtifactWriter(store.fs, store.path("p/u"), KEY, "p", "u")
    writer.write_json("config.json", {"a": 1})
    return Artifact("p/u", "u", "p", KEY, manifest_digest(writer.finish()))


def test_an_artifact_is_opened_with_the_digest_on_record(tmp_path: Path) -> None:
    artifact = sealed(tmp_path)
    store = ArtifactStore.at(f"file://{tmp_path}")
    assert store.reader(artifact).read_json("config.json") == {"a": 1}
    with pytest.raises(Stale):
        store.reader(Artifact("p/u", "u", "p", KEY, "0" * 64))
    with pytest.raises(NotFound):
        store.reader(Artifact("p/v", "u", "p", KEY))


@pytest.mark.parametrize("url", ["file://{}", "memory://{}"])
def test_who_watches_a_store_hears_of_every_segment_that_moves(tmp_path: Path, url: str) -> None:
    moved: list[int] = []
    store = ArtifactStore.at(url.format(tmp_path), moved=lambda: moved.append(1))
    writer = ArtifactWriter(store.fs, store.path("p/u"), KEY, "p", "u", moved=store.moved)
    before = len(moved)
    with writer.create("data.bin") as file:
        file.write(bytes(3 * SEGMENT_SIZE))
    assert len(moved) - before >= 4
    digest = manifest_digest(writer.finish())
    artifact = store.reader(Artifact("p/u", "u", "p", KEY, digest))
    before = len(moved)
    with artifact.open("data.bin") as file:
        assert file.read() == bytes(3 * SEGMENT_SIZE)
    assert len(moved) - before >= 4


def test_what_is_written_for_somebody_who_watches_is_synced_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(folder, "SYNC_BYTES", SEGMENT_SIZE)
    sync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda file: (order.append("sync"), sync(file)))
    store = ArtifactStore.at(f"file://{tmp_path}", moved=lambda: order.append("moved"))
    for moved, syncs in ((store.moved, 4), (None, 0)):
        order.clear()
        writer = ArtifactWriter(store.fs, store.path("p/u"), KEY, "p", "u", moved=moved)
        with writer.create("data.bin") as file:
            file.write(bytes(4 * SEGMENT_SIZE))
        assert order.count("sync") >= syncs
        assert order.count("moved") >= order.count("sync")
        assert (order.count("sync") == 0) == (syncs == 0)


def test_a_key_is_not_shown() -> None:
    assert repr(Artifact("p/u", "u", "p", KEY)) == (
        "Artifact(folder='p/u', object='u', project='p', digest='')"
    )


@pytest.mark.attack
@pytest.mark.parametrize("folder", ["../other", "p/../../etc", "p//x", "/etc", ".", "p/.", ""])
def test_a_folder_outside_the_store_is_refused(tmp_path: Path, folder: str) -> None:
    with pytest.raises(InvalidInput, match="not a folder of the object store"):
        ArtifactStore.at(f"file://{tmp_path}").path(folder)


def test_a_store_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InvalidInput, match="nowhere://x cannot be used"):
        ArtifactStore.at("nowhere://x")
