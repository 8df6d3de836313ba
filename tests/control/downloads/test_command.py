"""The command against a real control plane: an application takes a version out of the appliance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.main import run
from appliance.client import downloads
from appliance.client.profiles import Profile, Profiles
from appliance.control.services.data.artifacts import Provenance
from appliance.control.services.data.downloads import PIECE_BYTES
from appliance.control.store import tables
from tests.fakes.appliance import Appliance, running, settings_of
from tests.fakes.lab import write

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * (40 * PIECE_BYTES // 256)}
ROLES = """
exporter:
  description: Takes models out.
  scopes: [project]
  permissions: [models.download]
"""


@pytest.fixture
async def appliance(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Appliance]:
    file = tmp_path / "roles.yaml"
    file.write_text(ROLES)
    file.chmod(0o644)

    def settings(folder: Path) -> Any:
        return settings_of(folder, roles=file)

    async with running(template, tmp_path / "data", settings=settings) as started:
        started.project("demo")
        token = started.service_account("demo--app", "demo", role="exporter")
        token_file = tmp_path / "token"
        token_file.touch(0o600)
        token_file.write_text(token)
        monkeypatch.setenv("APPLIANCE_TOKEN_FILE", str(token_file))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        address = f"127.0.0.1:{started.control.api_port}"
        Profiles().put(Profile("here", address, started.ca_pem.decode(), project="demo"))
        store(started)
        yield started


def store(appliance: Appliance) -> None:
    base, artifacts = appliance.control.base, appliance.control.work.artifacts
    with base.database.write() as transaction:
        version = artifacts.allocate(
            transaction, "demo", "model", "base", Provenance("users/alice")
        )
    digest = write(artifacts.writer(version), FILES)
    reader = artifacts.verify(version, digest)
    artifacts.sign(version, digest)
    with base.database.write() as transaction:
        artifacts.register(transaction, version, reader, {}, {"kind": "upload", "inputs": []})


def allow(appliance: Appliance, *, allowed: bool = True) -> None:
    with appliance.database.write() as transaction:
        transaction.run(tables.project.update().values(allow_downloads=allowed))


def bytes_of(appliance: Appliance) -> list[tuple[str, str]]:
    """Outcome and bytes of each download that has ended, oldest first."""
    return [
        (record["outcome"], record["details"].get("bytes", ""))
        for record in appliance.records()
        if record["kind"] == "result" and "DownloadService" in record["method"]
    ]


async def test_a_version_is_taken_out_and_each_time_recorded(
    appliance: Appliance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "base"
    words = ["model", "download", "base/1", str(target)]
    assert await asyncio.to_thread(run, words) == 1
    assert "projects/demo does not allow downloads" in capsys.readouterr().err
    allow(appliance)
    assert await asyncio.to_thread(run, words) == 0
    assert {path.name: path.read_bytes() for path in target.iterdir()} == FILES
    total = str(sum(map(len, FILES.values())))
    assert bytes_of(appliance) == [("FAILED_PRECONDITION", ""), ("OK", total)]


async def test_a_download_that_was_cut_goes_on_with_the_byte_where_it_was(
    appliance: Appliance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The project forbids it in the middle, and allows it again."""
    allow(appliance)
    usual = downloads.Download._take_file

    def cut(self: Any, name: str, parts: Any, advance: Any) -> None:
        def some() -> Any:
            yield next(parts)
            allow(appliance, allowed=False)
            yield from parts

        usual(self, name, some() if name == "model.safetensors" else parts, advance)

    monkeypatch.setattr(downloads.Download, "_take_file", cut)
    monkeypatch.setattr("appliance.control.services.data.downloads.LOOK_SECONDS", 0.0)
    target = tmp_path / "base"
    words = ["model", "download", "base/1", str(target)]
    assert await asyncio.to_thread(run, words) == 1
    assert not target.exists()
    monkeypatch.setattr(downloads.Download, "_take_file", usual)
    allow(appliance)
    assert await asyncio.to_thread(run, words) == 0
    assert {path.name: path.read_bytes() for path in target.iterdir()} == FILES
    (first, cut_at), (last, rest) = bytes_of(appliance)
    assert (first, last) == ("FAILED_PRECONDITION", "OK")
    # Nothing that had arrived was sent again; what was on its way may have been.
    whole = len(FILES["model.safetensors"])
    assert int(rest) <= whole - PIECE_BYTES
    assert int(cut_at) + int(rest) >= whole
