"""Contexts: what is no address is refused, and nobody's context is taken over."""

from pathlib import Path

import pytest

from appliance.cli import init
from appliance.cli.local import Local
from appliance.client.profiles import Profile, Profiles
from tests.fakes.command_line import Run

CA = "-----BEGIN CERTIFICATE-----\n"


@pytest.mark.parametrize(
    "server",
    [
        "host",
        "host:",
        ":7443",
        "host:0",
        "host:99999",
        "host:7x",
        "host:-1",
        "host:\uff19",
        "::1:7443",
        "x y:1",
    ],
)
def test_what_is_no_address_is_refused(command: Run, home: Path, server: str) -> None:
    (home / "ca.pem").write_text(CA)
    result = command("context", "add", "one", "--server", server, "--ca", str(home / "ca.pem"))
    assert (result.code, "HOST:PORT" in result.err) == (2, True)
    assert Profiles().all() == []


@pytest.mark.parametrize("server", ["host:1", "10.0.0.1:65535", "[::1]:7443"])
def test_an_address_is_taken(command: Run, home: Path, server: str) -> None:
    (home / "ca.pem").write_text(CA)
    assert (
        command("context", "add", "one", "--server", server, "--ca", str(home / "ca.pem")).code == 0
    )


def test_who_uses_no_context_is_told_of_those_there_are(command: Run) -> None:
    profiles = Profiles()
    for name in ("one", "two"):
        profiles.put(Profile(name, "127.0.0.1:7443", CA))
    assert command("context", "remove", "two").code == 0
    said = command("job", "list").err
    assert "`appliance context use NAME` takes one of one" in said


@pytest.mark.attack
def test_a_new_appliance_takes_over_no_context(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiles = Profiles()
    older = Profile("local", "127.0.0.1:7443", "of another appliance", "demo", "alice")
    profiles.put(older)
    profiles.keep_token(older, "a live session")
    (home / "ca.pem").write_text(CA)
    assert init.add_context(Local(home), older.server, "bob") == "local-2"
    assert profiles.get("local") == older
    assert profiles.token(older) == "a live session"
    assert (profiles.current, profiles.get().user) == ("local-2", "bob")
    assert "this one is local-2" in capsys.readouterr().err
    assert init.add_context(Local(home), older.server, "bob") == "local-2"
