import stat
from pathlib import Path

import pytest

from appliance.client.profiles import Profile, Profiles
from appliance.core.errors import FailedPrecondition, InvalidInput, NotFound

HERE = Profile(name="here", server="127.0.0.1:7443", ca_pem="PEM", project="p")
THERE = Profile(name="there", server="h:1", ca_pem="PEM")


@pytest.fixture
def profiles(tmp_path: Path) -> Profiles:
    return Profiles(tmp_path / "config")


def test_the_last_one_added_is_used(profiles: Profiles) -> None:
    profiles.put(HERE)
    profiles.put(THERE)
    assert profiles.get() == THERE
    profiles.use("here")
    assert (profiles.get(), profiles.get("there")) == (HERE, THERE)


def test_none_chosen_says_how_to_choose(profiles: Profiles) -> None:
    with pytest.raises(FailedPrecondition, match="context add"):
        profiles.get()
    with pytest.raises(NotFound, match="nowhere"):
        profiles.use("nowhere")


def test_a_token_is_private_and_goes_with_its_context(profiles: Profiles, tmp_path: Path) -> None:
    profiles.put(HERE)
    assert profiles.token(HERE) == ""
    profiles.keep_token(HERE, "secret")
    assert profiles.token(HERE) == "secret"
    (file,) = (tmp_path / "config" / "sessions").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "secret" not in (tmp_path / "config" / "contexts.json").read_text()
    profiles.remove("here")
    assert not file.exists()
    assert (profiles.all(), profiles.current) == ([], "")


@pytest.mark.attack
def test_a_name_cannot_leave_the_folder(profiles: Profiles) -> None:
    with pytest.raises(InvalidInput):
        profiles.put(Profile(name="../evil", server="h:1", ca_pem=""))


@pytest.mark.attack
def test_a_token_that_others_can_read_is_refused(profiles: Profiles, tmp_path: Path) -> None:
    profiles.put(HERE)
    profiles.keep_token(HERE, "secret")
    (tmp_path / "config" / "sessions" / "here").chmod(0o644)
    with pytest.raises(FailedPrecondition):
        profiles.token(HERE)


def test_a_broken_file_is_named_and_kept(profiles: Profiles, tmp_path: Path) -> None:
    profiles.put(HERE)
    file = tmp_path / "config" / "contexts.json"
    file.write_text("{")
    with pytest.raises(FailedPrecondition, match=r"contexts\.json"):
        profiles.all()
    assert file.read_text() == "{"


def test_the_project_of_a_context(profiles: Profiles) -> None:
    profiles.put(HERE)
    profiles.put(THERE, use=False)
    assert profiles.set_project("q").project == "q"
    profiles.set_project("r", "there")
    assert (profiles.get("there").project, profiles.current) == ("r", "here")


@pytest.mark.parametrize("blocked", ["config", "config/sessions", "config/devices"])
def test_a_folder_that_cannot_be_written_is_said_before_anything_is_kept(
    profiles: Profiles, tmp_path: Path, blocked: str
) -> None:
    profiles.check_writable()
    assert profiles.all() == []
    kept = tmp_path / blocked
    kept.rename(tmp_path / "away")
    kept.touch()
    with pytest.raises(FailedPrecondition, match=str(kept)):
        profiles.check_writable()
    if blocked == "config":
        assert profiles.all() == []
        with pytest.raises(FailedPrecondition, match="is not a folder"):
            profiles.put(HERE)


def test_a_folder_of_the_system_says_where_to_keep_contexts() -> None:
    profiles = Profiles(Path("/proc/appliance"))
    for keep in (profiles.check_writable, lambda: profiles.put(HERE)):
        with pytest.raises(FailedPrecondition, match="set XDG_CONFIG_HOME to a folder that this"):
            keep()


@pytest.mark.parametrize("text", [b"{", b"\xff", b'{"current": ""}', b"[]"])
def test_contexts_that_cannot_be_read_are_named(
    profiles: Profiles, tmp_path: Path, text: bytes
) -> None:
    profiles.put(HERE)
    file = tmp_path / "config" / "contexts.json"
    file.write_bytes(text)
    for use in (profiles.all, profiles.check_writable):
        with pytest.raises(FailedPrecondition, match=f"{file} cannot be read: fix or remove it"):
            use()


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr("appliance.client.profiles.Path.home", homeless)
    with pytest.raises(FailedPrecondition, match="set XDG_CONFIG_HOME"):
        Profiles()
