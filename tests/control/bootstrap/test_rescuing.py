"""When nobody can log in any more: what the offline commands open, and what they record."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from appliance.control.auth import devices
from appliance.control.auth.totp import Totp
from appliance.control.bootstrap import rescuing
from appliance.control.bootstrap.opening import Opened, open_data
from appliance.control.store import tables
from appliance.core.errors import FailedPrecondition, InvalidInput, NotFound, Stale
from tests.fakes.appliance import ADMINISTRATOR, settings_of

REPOSITORY = Path(__file__).parents[3]


def now() -> datetime:
    return datetime.now(UTC)


def records(copy: Path) -> list[dict[str, Any]]:
    lines = b"".join(path.read_bytes() for path in sorted((copy / "audit").glob("0*.log")))
    return [json.loads(line) for line in lines.splitlines()]


@pytest.fixture
def locked_out(copy: Path) -> Path:
    """The only administrator is locked, shut out on every way, and has an authenticator."""
    opened = open_data(settings_of(copy), now)
    key = opened.keyring.token_hmac
    with opened.database.write() as transaction:
        device = devices.remember(transaction, ADMINISTRATOR, key, now()).split("_")[2]
        for counter in (f"user:{ADMINISTRATOR}", f"recovery:{ADMINISTRATOR}", f"device:{device}"):
            transaction.run(
                tables.attempt.insert().values(account=counter, failures=100, next_time=now())
            )
        transaction.run(tables.user.update().values(locked=True))
        totp = Totp(opened.keyring.field_key, key)
        totp.begin(transaction, ADMINISTRATOR, ADMINISTRATOR, now())
        totp.confirm(transaction, ADMINISTRATOR)
        transaction.run(
            tables.session.insert().values(
                id="s",
                user=ADMINISTRATOR,
                digest=b"",
                step="COMPLETE",
                create_time=now(),
                expire_time=now(),
                seen_time=now(),
                source="test",
            )
        )
    opened.close()
    return copy


def rows(copy: Path) -> dict[str, list[Any]]:
    opened: Opened = open_data(settings_of(copy), now)
    names = ("attempt", "totp", "recovery_code", "session", "device", "user")
    with opened.database.read() as state:
        found = {name: state.all(getattr(tables, name).select()) for name in names}
    opened.close()
    return found


def test_unlocking_opens_every_way_in_and_leaves_the_second_factor(locked_out: Path) -> None:
    rescuing.unlock(settings_of(locked_out), ADMINISTRATOR, now)
    left = rows(locked_out)
    assert (left["attempt"], left["user"][0].locked) == ([], False)
    assert len(left["totp"]) == len(left["device"]) == 1
    assert len(left["recovery_code"]) == 10


def test_a_reset_factor_leaves_nothing_that_it_had_proved(locked_out: Path) -> None:
    rescuing.reset_factor(settings_of(locked_out), ADMINISTRATOR, now)
    left = rows(locked_out)
    for gone in ("totp", "recovery_code", "session", "device"):
        assert left[gone] == [], gone
    assert left["user"][0].locked is True


@pytest.mark.parametrize(
    ("method", "work"), [("unlock", rescuing.unlock), ("reset-factor", rescuing.reset_factor)]
)
def test_intent_and_result_are_recorded(copy: Path, method: str, work: Any) -> None:
    work(settings_of(copy), ADMINISTRATOR, now)
    said = [
        (each["kind"], each["method"], each["resource"], each["outcome"])
        for each in records(copy)[-2:]
    ]
    assert said == [
        ("intent", method, "users/alice", ""),
        ("result", method, "users/alice", "OK"),
    ]
    by = {"by": f"offline, uid {os.getuid()}"}
    assert [(each["principal"], each["details"]) for each in records(copy)[-2:]] == [("", by)] * 2


@pytest.fixture
def older(copy: Path, tmp_path: Path) -> Path:
    """A state that was put back: the log has seen two more changes."""
    shutil.copy2(copy / "state.db", tmp_path / "older.db")
    for _ in range(2):
        rescuing.unlock(settings_of(copy), ADMINISTRATOR, now)
    for path in copy.glob("state.db*"):
        path.unlink()
    shutil.copy2(tmp_path / "older.db", copy / "state.db")
    opened = open_data(settings_of(copy), now, check_state=False)
    with opened.database.write() as transaction:
        devices.remember(transaction, ADMINISTRATOR, opened.keyring.token_hmac, now())
        values = {"id": "s", "user": ADMINISTRATOR, "digest": b"", "step": "COMPLETE"}
        times = dict.fromkeys(("create_time", "expire_time", "seen_time"), now())
        transaction.run(tables.session.insert().values(**values, **times, source="test"))
        transaction.accept([], opened.database.generation - 1)
    opened.close()
    return copy


def test_an_older_state_is_accepted_by_whoever_may_read_the_keys(older: Path) -> None:
    with pytest.raises(Stale, match="accept-state"):
        open_data(settings_of(older), now)
    accepted = rescuing.accept_state(settings_of(older), now)
    assert accepted.log - accepted.state == 2
    # `init` left two records, the first unlocking an intent that knows of nothing new yet.
    assert accepted.first_record == 3
    opened = open_data(settings_of(older), now)
    assert opened.database.generation > accepted.log
    opened.close()
    left = rows(older)
    assert left["session"] == left["device"] == []
    by = {"by": f"offline, uid {os.getuid()}"}
    assert [(each["kind"], each["method"], each["details"]) for each in records(older)[-2:]] == [
        ("intent", "accept-state", by | json.loads(json.dumps(dataclasses.asdict(accepted)))),
        ("result", "accept-state", by),
    ]
    with pytest.raises(FailedPrecondition, match="nothing to accept"):
        rescuing.accept_state(settings_of(older), now)


@pytest.mark.attack
def test_accepting_that_was_broken_off_is_still_noticed(
    older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if killed between its intent and the change."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rescuing, "end_log_ins_in", killed)
    with pytest.raises(KeyboardInterrupt):
        rescuing.accept_state(settings_of(older), now)
    monkeypatch.undo()
    with pytest.raises(Stale, match="accept-state"):
        open_data(settings_of(older), now)
    rescuing.accept_state(settings_of(older), now)


def test_it_is_refused_while_the_control_plane_runs_and_for_nobody(copy: Path) -> None:
    before = len(records(copy))
    with pytest.raises(NotFound):
        rescuing.unlock(settings_of(copy), "ghost", now)
    with pytest.raises(InvalidInput):
        rescuing.unlock(settings_of(copy), "../alice", now)
    opened = open_data(settings_of(copy), now)
    try:
        with pytest.raises(FailedPrecondition, match="another control plane uses"):
            rescuing.reset_factor(settings_of(copy), ADMINISTRATOR, now)
    finally:
        opened.close()
    assert len(records(copy)) == before


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        (("unlock", "alice"), 0, {"done": "unlock", "user": "users/alice"}, ""),
        (("reset-factor", "alice"), 0, {"done": "reset-factor", "user": "users/alice"}, ""),
        (("unlock", "ghost"), 1, None, "users/ghost"),
        (("accept-clock",), 1, None, "there is nothing to accept"),
        (("accept-state",), 1, None, "there is nothing to accept"),
        (("unlock",), 2, None, "USER"),
    ],
)
def test_the_command_prints_one_json_object_or_one_sentence(
    copy: Path, arguments: tuple[str, ...], code: int, out: dict[str, str] | None, err: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "appliance.control", "--config", copy / "control.toml", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert (json.loads(done.stdout) if done.stdout else None) == out
    assert err in done.stderr
    assert "Traceback" not in done.stderr
