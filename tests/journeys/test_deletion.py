"""A dataset is deleted on a real appliance, which is killed at that moment: its key is nowhere."""

import json
import os
import signal
from contextlib import closing
from pathlib import Path

import pytest
from pysqlite3 import dbapi2 as sqlite

from appliance.control.services.common.keys import PAD
from deploy.demo.terminal import CommandFailedError
from tests.journeys.running import Appliance, sentence, texts, wait_for

pytestmark = pytest.mark.timeout(240)

NAME = "projects/demo/datasets/docs/versions/1"


def stored_key(data: Path) -> bytes:
    """The one wrapped key of a version."""
    with closing(sqlite.connect(data / "state.db")) as raw:
        ((key,),) = raw.execute("SELECT wrapped_key FROM version_key").fetchall()
    assert key.startswith(PAD)
    return bytes(key[len(PAD) :])


def files_with(data: Path, secret: bytes) -> list[str]:
    pieces = secret[:16], secret[-16:]
    return [
        str(path.relative_to(data))
        for path in sorted(data.rglob("*"))
        if path.is_file() and any(piece in path.read_bytes() for piece in pieces)
    ]


@pytest.mark.attack
def test_a_deletion_is_finished_whatever_is_killed(appliance: Appliance, tmp_path: Path) -> None:
    alice, data = appliance.alice, appliance.data
    alice.run("dataset", "create", "docs")
    alice.run("dataset", "upload", "docs", str(texts(tmp_path / "texts", 3)))
    uid = json.loads(alice.run("dataset", "get", "docs/1", "-o", "json").stdout)["uid"]
    key = stored_key(data)
    assert [name for name in files_with(data, key) if name.startswith("state.db")]

    assert "give --yes" in alice.run("dataset", "delete", "docs", expect=3).stderr
    killed = appliance.process_id("control")
    alice.run("dataset", "delete", "docs", "--yes")
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: appliance.process_id("control") != killed, "another control plane")

    def tombstone() -> dict[str, str] | None:
        try:
            done = alice.run("tombstone", "get", uid, "-o", "json", echo=False)
        except CommandFailedError:
            return None  # the control plane is not back yet
        found: dict[str, str] = json.loads(done.stdout)
        return found if {"erase_time", "purge_time"} <= found.keys() else None

    found = wait_for(tombstone, "key and bytes to be gone")
    assert (found["deleted"], found["deleter"]) == (NAME, "users/alice")
    assert files_with(data, key) == []
    assert not list(appliance.objects.glob(f"*/{uid}"))
    assert "there is no" in sentence(alice.run("dataset", "get", "docs/1", expect=6))

    alice.run("dataset", "create", "docs")
    alice.run("dataset", "upload", "docs", str(tmp_path / "texts"))
    again = json.loads(alice.run("dataset", "get", "docs/1", "-o", "json").stdout)
    assert (again["name"], again["uid"] != uid) == (NAME, True)
