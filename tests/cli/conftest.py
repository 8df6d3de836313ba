import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.main import run
from appliance.client.profiles import Profile, Profiles
from tests.fakes.command_line import Result, Run
from tests.fakes.control_api import FakeApi, serving_api


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration folder of the test's own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("CONTEXT", "PROJECT", "TOKEN_FILE", "DATA_DIR", "DEBUG"):
        monkeypatch.delenv(f"APPLIANCE_{name}", raising=False)
    return tmp_path


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line in this process."""

    def type_(*arguments: str, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capsys.readouterr()
        code = run(arguments)
        said = capsys.readouterr()
        return Result(code, said.out, said.err)

    return type_


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving_api() as running:
        yield running


@pytest.fixture
def logged_in(api: FakeApi) -> FakeApi:
    """A server that the current context points at, with a session and a project."""
    profiles = Profiles()
    profile = Profile("here", api.address, api.ca_pem.decode(), project="demo", user="alice")
    profiles.put(profile)
    profiles.keep_token(profile, "old-token")
    return api


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A person at the terminal who types these lines at prompts, whatever is asked."""
    lines: list[Any] = []
    monkeypatch.setattr("appliance.cli.prompts.interactive", lambda: True)
    monkeypatch.setattr("click.prompt", lambda *_, **__: lines.pop(0))
    return lines
