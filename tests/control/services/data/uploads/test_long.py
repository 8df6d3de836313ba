"""Uploads that last longer than every bound on a connection, a kill and a session.

The control plane and the command are processes; connections live for a second, parts are small and
written slowly, so that what takes hours elsewhere takes seconds here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyotp
import pytest
from pysqlite3 import dbapi2 as sqlite

from appliance.api.auth.v1 import auth_service_pb2
from appliance.api.data.v1 import dataset_service_pb2
from appliance.client.connection import Connection
from appliance.client.methods import find
from appliance.client.profiles import Profile, Profiles
from appliance.control.main import ControlPlane
from appliance.core.errors import Unauthenticated
from tests.fakes import tiny_model
from tests.fakes.appliance import ADMINISTRATOR, Appliance, MovingClock, settings_of
from tests.fakes.ports import free_port

REPOSITORY = Path(__file__).parents[5]
AGE_SECONDS = 1.0
PARTS = 60
CONTROL = f"""
import sys, time
from appliance.control.services.data import upload_layout, upload_parts, upload_rows
from appliance.wire import server
bounds = dict(server.SERVER_OPTIONS)
bounds["grpc.max_connection_age_ms"] = {int(AGE_SECONDS * 1000)}
bounds["grpc.max_connection_age_grace_ms"] = 200
server.SERVER_OPTIONS = tuple(bounds.items())
for module in (upload_layout, upload_parts, upload_rows):
    module.PART_BYTES = 20_000
finish = upload_parts.IncomingPart.finish
def slowly(self):
    time.sleep(0.2)
    return finish(self)
upload_parts.IncomingPart.finish = slowly
from appliance.control.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
COMMAND = """
import signal, sys
# Whoever is started in the background of a shell ignores it, and so would this.
signal.signal(signal.SIGINT, signal.default_int_handler)
from appliance.client import parts
parts.TEXT_PART_BYTES = 20_000
from appliance.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


@dataclass
class House:
    """A control plane that can be killed, and somebody who uploads."""

    folder: Path
    home: Path
    port: int
    token: str = field(repr=False)
    totp: pyotp.TOTP = field(repr=False)
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CONTROL, "--config", str(self.folder / "control.toml")],
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        assert self.process.stderr is not None
        assert json.loads(self.process.stderr.readline())["message"] == "serving"

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def command(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={"PATH": os.environ["PATH"], "XDG_CONFIG_HOME": str(self.home), "LANG": "C.UTF-8"},
        )

    def parts(self) -> set[int]:
        """The parts that were answered, or are about to be."""
        with sqlite.connect(f"file:{self.folder}/state.db?mode=ro", uri=True) as state:
            return {row[0] for row in state.execute("SELECT number FROM upload_part")}

    def connection(self) -> Connection:
        ca = (self.folder / "ca.pem").read_bytes()
        return Connection(f"127.0.0.1:{self.port}", ca, self.token)

    def prove_again(self) -> None:
        """The same person gives a code elsewhere: the session of the upload is gone."""
        method = find("AuthService.VerifyTotp")
        with self.connection() as connection:
            request = auth_service_pb2.VerifyTotpRequest(token=self.token, code=self.totp.now())
            connection.call(connection.stub(method.stub).VerifyTotp, request)
            who = find("AuthService.WhoAmI")
            with pytest.raises(Unauthenticated):
                connection.call(connection.stub(who.stub).WhoAmI, who.request())


@pytest.fixture
async def house(copy: Path, tmp_path: Path) -> Iterator[House]:
    control = ControlPlane.build(settings_of(copy), MovingClock())
    appliance = Appliance(copy, control, MovingClock())
    appliance.project("demo")
    totp, token = appliance.enrol(ADMINISTRATOR), appliance.session(ADMINISTRATOR)
    await control.close()
    port, config = free_port(), copy / "control.toml"
    text = re.sub(r'"127\.0\.0\.1:74\d\d"', '"127.0.0.1:0"', config.read_text())
    config.write_text(text.replace('api = "127.0.0.1:0"', f'api = "127.0.0.1:{port}"'))
    home = tmp_path / "config"
    profiles = Profiles(home / "appliance")
    ca = (copy / "ca.pem").read_text()
    profile = Profile("here", f"127.0.0.1:{port}", ca, project="demo", user=ADMINISTRATOR)
    profiles.put(profile)
    profiles.keep_token(profile, token)
    found = House(copy, home, port, token, totp)
    found.start()
    create = find("DatasetService.CreateDataset")
    with found.connection() as connection:
        request = dataset_service_pb2.CreateDatasetRequest(parent="projects/demo", dataset_id="raw")
        connection.call(connection.stub(create.stub).CreateDataset, request)
    try:
        yield found  # type: ignore[misc]
    finally:
        found.kill()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.jsonl"
    lines = (json.dumps({"id": f"d{n}", "text": f"{n} " + "x" * 9_000}) for n in range(2 * PARTS))
    file.write_text("\n".join(lines))
    return file


def until(there: Callable[[], bool], running: subprocess.Popen[str]) -> None:
    while not there():
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)


@contextmanager
def ended(running: subprocess.Popen[str]) -> Iterator[tuple[str, str]]:
    """What a command has said at its end."""
    try:
        yield running.communicate(timeout=120)
    finally:
        running.kill()


def versions(house: House) -> list[tuple[str, str, int]]:
    with sqlite.connect(f"file:{house.folder}/state.db?mode=ro", uri=True) as state:
        rows = state.execute(
            "SELECT kind, state, json_extract(facts, '$.documents') FROM artifact_version"
        )
        return [tuple(row) for row in rows]


def test_nothing_is_cut_by_connections_that_end_and_a_log_in_elsewhere(
    house: House, corpus: Path
) -> None:
    began = time.monotonic()
    running = house.command("dataset", "upload", "raw", corpus)
    until(lambda: len(house.parts()) >= 5, running)
    house.prove_again()
    with ended(running) as (out, err):
        assert running.returncode == 0, err
    assert out.strip() == "projects/demo/datasets/raw/versions/1"
    assert time.monotonic() - began > 3 * AGE_SECONDS
    assert versions(house) == [("dataset", "complete", 2 * PARTS)]


def test_an_import_outlives_them_too(house: House, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    filler = json.dumps({f"word {n}": 1 for n in range(20_000)}).encode()
    for name, data in (tiny_model.files() | {"vocab.json": filler}).items():
        (folder / name).write_bytes(data)
    running = house.command("model", "import", "base", folder)
    until(lambda: len(house.parts()) >= 2, running)
    house.prove_again()
    with ended(running) as (out, err):
        assert running.returncode == 0, err
    assert out.strip() == "projects/demo/models/base/versions/1"


def test_a_killed_control_plane_loses_no_part_and_the_rest_is_sent_by_resume(
    house: House, corpus: Path
) -> None:
    running = house.command("dataset", "upload", "raw", corpus)
    until(lambda: len(house.parts()) >= 8, running)
    house.kill()
    running.send_signal(signal.SIGINT)
    with ended(running) as (_, err):
        assert running.returncode == 130, err
    assert f"`appliance dataset upload raw {corpus} --upload " in err
    before = sealed(house)
    kept = house.parts()
    assert len(kept) >= 8
    house.start()
    running = house.command("dataset", "upload", "raw", corpus, "--resume", "-o", "json")
    with ended(running) as (out, err):
        assert running.returncode == 0, err
    assert json.loads(out)["documents"] == 2 * PARTS
    after = sealed(house)
    for number in kept:
        file = f"part-{number:05d}.jsonl"
        assert after[file] == before[file], f"{file} was written again"


def test_a_control_plane_that_comes_back_is_waited_for(house: House, corpus: Path) -> None:
    running = house.command("dataset", "upload", "raw", corpus)
    until(lambda: len(house.parts()) >= 4, running)
    house.kill()
    house.start()
    with ended(running) as (_, err):
        assert running.returncode == 0, err
    assert "trying again" in err
    assert versions(house) == [("dataset", "complete", 2 * PARTS)]


def sealed(house: House) -> dict[str, str]:
    """Digest of every sealed part."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (house.folder / "objects").rglob("part-*.jsonl")
    }
