"""A key that was deleted is in no file of the data directory, and the audit log says since when."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from appliance.api.data.v1 import dataset_service_pb2 as datasets
from appliance.api.projects.v1 import project_service_pb2 as projects
from appliance.control.services.common.keys import PAD
from appliance.control.services.data.artifacts import Provenance
from appliance.control.services.data.storage_tasks import TaskKind
from appliance.control.store import migrate, tables
from appliance.control.store.database import Database
from appliance.control.store.rows import RowMacs
from tests.fakes.lab import ALICE, PROJECT, Lab
from tests.fakes.rows import somebody
from tests.fakes.state import CLUSTER, ROW_KEY, START, make_state

PIECE = 16
"""Bytes of a wrapped key that are looked for: also half of one must be nowhere."""


def wrapped_key(lab: Lab, uid: str) -> bytes:
    with lab.database.read() as state:
        key = tables.version_key.c
        stored = bytes(state.value(select(key.wrapped_key).where(key.version == uid)))
    assert stored.startswith(PAD)
    return stored[len(PAD) :]


def files_with(folder: Path, secret: bytes) -> list[str]:
    """The files in which a piece of these bytes stands."""
    pieces = [secret[at : at + PIECE] for at in range(0, len(secret) - PIECE, PIECE)]
    return [
        path.name
        for path in sorted(folder.rglob("*"))
        if path.is_file() and any(piece in path.read_bytes() for piece in pieces)
    ]


def delete(lab: Lab, name: str) -> None:
    lab.datasets.delete_version(ALICE, datasets.DeleteDatasetVersionRequest(name=name))


def events(lab: Lab, what: str) -> list[dict[str, Any]]:
    """The records of what has happened by itself, oldest first."""
    lines = b"".join(path.read_bytes() for path in sorted((lab.folder / "audit").glob("*.log")))
    records = [json.loads(line) for line in lines.splitlines() if line.strip(b"\0")]
    return [record for record in records if record["method"] == what]


@pytest.mark.attack
def test_a_deleted_key_is_in_no_file_once_no_reader_holds_it_back(lab: Lab) -> None:
    name = lab.text()
    row = lab.version_row(name)
    key = wrapped_key(lab, row.uid)
    assert files_with(lab.folder, key)
    with lab.database.read() as reader:
        assert reader.value(select(tables.version_key.c.version)) == row.uid
        delete(lab, name)
        lab.work.erasures.do_all()
        # What it reads is still there, and nobody says that it is not.
        assert files_with(lab.folder, key)
        assert reader.value(select(tables.version_key.c.version)) == row.uid
        assert events(lab, "artifact.erased") == []
        (tombstone,) = lab.rows(tables.tombstone)
        assert tombstone.erase_time is None
    lab.forward(2)
    lab.work.erasures.do_all()
    assert files_with(lab.folder, key) == []
    (erased,) = events(lab, "artifact.erased")
    made = erased["details"]["made"]
    assert (erased["resource"], made["uid"], made["digest"]) == (name, row.uid, row.manifest_digest)
    (tombstone,) = lab.rows(tables.tombstone)
    assert tombstone.erase_time is not None


@pytest.mark.attack
def test_a_kill_between_the_commit_and_the_rest_leaves_the_rest_to_the_next_start(
    lab: Lab, tmp_path: Path
) -> None:
    name = lab.text()
    key = wrapped_key(lab, lab.version_row(name).uid)
    delete(lab, name)
    # What is on the disk at this moment is what a kill leaves.
    killed = Path(shutil.copytree(lab.folder, tmp_path / "killed"))
    killed.chmod(0o700)
    assert files_with(killed, key)
    again = Lab(killed)
    assert files_with(killed, key) == []
    assert [record["resource"] for record in events(again, "artifact.erased")] == [name]
    again.close()


@pytest.mark.attack
def test_keys_of_what_was_never_complete_go_the_same_way(lab: Lab) -> None:
    artifacts = lab.work.artifacts
    with lab.database.write() as transaction:
        version = artifacts.allocate(
            transaction, PROJECT, "model", "half", Provenance("users/alice")
        )
    key = wrapped_key(lab, version.uid)
    artifacts.give_up(version)
    lab.work.erasures.do_all()
    assert files_with(lab.folder, key) == []
    assert lab.rows(tables.tombstone) == []


@pytest.mark.attack
def test_the_key_of_a_deleted_project_is_in_no_file(lab: Lab) -> None:
    with lab.database.read() as state:
        stored = bytes(state.value(select(tables.project_key.c.wrapped_key)))
    assert files_with(lab.folder, stored[len(PAD) :])
    lab.projects.delete(ALICE, projects.DeleteProjectRequest(name="projects/demo"))
    lab.work.erasures.do_all()
    assert files_with(lab.folder, stored[len(PAD) :]) == []
    assert [record["resource"] for record in events(lab, "project.erased")] == ["projects/demo"]


def test_keys_go_while_the_object_store_is_away_and_bytes_once_it_is_back(lab: Lab) -> None:
    name = lab.text()
    row = lab.version_row(name)
    key = wrapped_key(lab, row.uid)
    lab.objects.rename(lab.folder / "away")
    delete(lab, name)
    for _ in range(3):
        lab.work.storage.do_all()
        lab.work.erasures.do_all()
        lab.forward(60)
    assert files_with(lab.folder, key) == []
    assert (lab.folder / "away" / PROJECT / row.uid).is_dir()
    assert events(lab, "artifact.purged") == []
    if lab.objects.exists():
        shutil.rmtree(lab.objects)
    (lab.folder / "away").rename(lab.objects)
    lab.work.storage.do_all()
    assert not (lab.objects / PROJECT / row.uid).exists()
    (purged,) = events(lab, "artifact.purged")
    assert purged["details"]["made"]["uid"] == row.uid
    (tombstone,) = lab.rows(tables.tombstone)
    assert tombstone.purge_time is not None


def test_many_deletions_empty_the_log_of_writes_once(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [lab.text(f"d{number}") for number in range(5)]
    for name in names:
        delete(lab, name)
    emptied, empty_log = [], lab.database.empty_log
    monkeypatch.setattr(lab.database, "empty_log", lambda: emptied.append(1) or empty_log())
    lab.work.erasures.do_all()
    assert len(emptied) == 1
    assert len(events(lab, "artifact.erased")) == 5
    with lab.database.read() as state:
        assert lab.work.tasks.counts().get(TaskKind.ERASE_KEYS) is None
        assert state is not None


@pytest.mark.attack
def test_a_reader_that_stays_holds_up_who_writes_once_a_second_at_most(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [lab.text(f"d{number}") for number in range(5)]
    tried: list[int] = []
    monkeypatch.setattr(lab.database, "empty_log", lambda: bool(tried.append(1)))
    for name in names:
        delete(lab, name)
    lab.work.erasures.do_all()
    assert len(tried) == 1


@pytest.mark.attack
def test_rows_that_are_moved_leave_no_copy_of_a_key(tmp_path: Path) -> None:
    """SQLite leaves copies of short rows in pages that it balances; not of what lies beyond."""
    database, random_numbers = make_state(tmp_path), random.Random(7)
    with somebody(database.path) as raw:
        assert raw.execute("PRAGMA page_size").fetchone()[0] <= len(PAD)
    with database.write() as transaction:
        transaction.run(tables.project.insert().values(id="p", description="", create_time=START))
    live: dict[str, bytes] = {}
    dead: list[bytes] = []
    for _ in range(60):
        with database.write() as transaction:
            for _ in range(20):
                if live and random_numbers.random() < 0.5:
                    uid = random_numbers.choice(list(live))
                    dead.append(live.pop(uid))
                    transaction.run(
                        tables.project_key.delete().where(
                            tables.project_key.c.version == int(uid, 16)
                        )
                    )
                    continue
                uid = random_numbers.randbytes(6).hex()
                live[uid] = random_numbers.randbytes(60)
                transaction.run(
                    tables.project_key.insert().values(
                        project="p",
                        version=int(uid, 16),
                        wrapped_key=PAD + live[uid],
                        create_time=START,
                    )
                )
    assert database.empty_log()
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("state.db*"))
    assert [key for key in dead if key[:PIECE] in stored or key[-PIECE:] in stored] == []
    assert [key for key in live.values() if stored.count(key) != 1] == []
    database.close()


@pytest.mark.attack
def test_what_earlier_versions_freed_is_left_out_at_the_first_start(tmp_path: Path) -> None:
    database = make_state(tmp_path)
    database.close()
    secret = b"a key of before, in 32 bytes ..."
    with somebody(database.path) as raw:
        raw.execute("PRAGMA secure_delete=OFF")
        raw.execute("CREATE TABLE old (key BLOB)")
        raw.execute("INSERT INTO old VALUES (?)", (secret,))
        raw.execute("DROP TABLE old")
        raw.execute("PRAGMA user_version=0")
    assert secret in database.path.read_bytes()
    again = Database(database.path)
    assert migrate.check(again, RowMacs(ROW_KEY), CLUSTER, signed=True) == []
    assert secret not in b"".join(path.read_bytes() for path in tmp_path.glob("state.db*"))
    again.close()
