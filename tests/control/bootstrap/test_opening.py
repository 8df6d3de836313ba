"""A data directory that is not in order: one sentence, and the control plane does not start."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.control.audit.record import AuditEntry
from appliance.control.bootstrap.opening import last_moment, open_data
from appliance.control.main import ControlPlane
from appliance.control.store import tables
from appliance.core.errors import ApplianceError, FailedPrecondition, Stale, Tampered
from tests.fakes.appliance import MovingClock, make_data_directory, settings_of
from tests.fakes.state import as_control


def now() -> datetime:
    return datetime.now(UTC)


def test_what_init_made_opens_closes_and_opens_again(copy: Path) -> None:
    for _ in range(2):
        opened = open_data(settings_of(copy), now)
        assert opened.log.size == 2
        opened.close()


def test_one_control_plane_uses_a_directory_at_a_time(copy: Path) -> None:
    opened = open_data(settings_of(copy), now)
    with pytest.raises(FailedPrecondition, match="another control plane uses"):
        open_data(settings_of(copy), now)
    opened.close()
    open_data(settings_of(copy), now).close()


def widen(copy: Path, _other: Path) -> None:
    (copy / "root.key").chmod(0o640)


def open_folder(copy: Path, _other: Path) -> None:
    copy.chmod(0o755)


def drop_root_key(copy: Path, _other: Path) -> None:
    (copy / "root.key").unlink()


def drop_keyring(copy: Path, _other: Path) -> None:
    (copy / "keyring.sealed").unlink()


def drop_state(copy: Path, _other: Path) -> None:
    (copy / "state.db").unlink()


def drop_audit(copy: Path, _other: Path) -> None:
    shutil.rmtree(copy / "audit")


def other_root_key(copy: Path, other: Path) -> None:
    shutil.copy(other / "root.key", copy / "root.key")


def other_keyring(copy: Path, other: Path) -> None:
    shutil.copy(other / "keyring.sealed", copy / "keyring.sealed")


def other_state(copy: Path, other: Path) -> None:
    shutil.copy(other / "state.db", copy / "state.db")


def empty_state(copy: Path, _other: Path) -> None:
    (copy / "state.db").write_bytes(b"")


def change_log(copy: Path, _other: Path) -> None:
    log = copy / "audit" / "000000000000.log"
    log.write_bytes(log.read_bytes().replace(b"users/alice", b"users/mallo"))


def drop_log(copy: Path, _other: Path) -> None:
    shutil.rmtree(copy / "audit")
    (copy / "audit").mkdir(mode=0o700)


def other_log(copy: Path, other: Path) -> None:
    shutil.rmtree(copy / "audit")
    shutil.copytree(other / "audit", copy / "audit")


def grant_machine_role(copy: Path, _other: Path) -> None:
    with as_control(copy) as database, database.write() as transaction:
        transaction.run(tables.binding.update().values(role="node"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of another appliance."""
    return make_data_directory(tmp_path_factory.mktemp("other") / "data")


@pytest.mark.attack
@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (widen, FailedPrecondition, "open to other users"),
        (open_folder, FailedPrecondition, "open to other users"),
        (drop_root_key, FailedPrecondition, "whose root.key is missing; without it nothing"),
        (drop_keyring, FailedPrecondition, "whose keyring.sealed is missing; it holds"),
        (drop_state, FailedPrecondition, "whose state.db is missing; it holds"),
        (drop_audit, FailedPrecondition, "whose audit is missing; it holds"),
        (other_root_key, Tampered, ""),
        (other_keyring, Tampered, ""),
        (other_state, FailedPrecondition, "restore both from the same backup"),
        (empty_state, FailedPrecondition, "is empty; put back `state.db` and `audit` of"),
        (change_log, Tampered, ""),
        (drop_log, Tampered, ""),
        (other_log, Tampered, ""),
        (grant_machine_role, FailedPrecondition, "the policy is refused"),
    ],
)
async def test_it_does_not_start(
    copy: Path,
    other: Path,
    damage: Callable[[Path, Path], None],
    error: type[ApplianceError],
    says: str,
) -> None:
    settings = settings_of(copy)
    damage(copy, other)
    with pytest.raises(error) as refused:
        ControlPlane.build(settings, MovingClock())
    assert says in refused.value.message
    assert "appliance init" not in refused.value.message
    assert "Traceback" not in refused.value.message


@pytest.mark.attack
def test_an_older_copy_of_the_log_contradicts_the_state(copy: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(copy / "audit", older)
    opened = open_data(settings_of(copy), now)
    opened.log.append(AuditEntry("intent", method="test")).result()
    with opened.database.write():
        pass
    opened.close()
    shutil.rmtree(copy / "audit")
    shutil.copytree(older, copy / "audit")
    with pytest.raises(Stale):
        open_data(settings_of(copy), now)


@pytest.mark.attack
def test_an_older_copy_of_the_state_contradicts_the_log(copy: Path, tmp_path: Path) -> None:
    """What was taken away meanwhile, such as a token, would be back."""
    shutil.copy2(copy / "state.db", tmp_path / "older.db")
    opened = open_data(settings_of(copy), now)
    before = opened.database.generation
    with opened.database.write():
        pass
    assert opened.database.generation == before + 1
    opened.log.append(AuditEntry("result", method="test")).result()
    opened.close()
    for path in copy.glob("state.db*"):
        path.unlink()
    shutil.copy2(tmp_path / "older.db", copy / "state.db")
    with pytest.raises(Stale, match=f"it has {before} changes, and the log has seen {before + 1}"):
        open_data(settings_of(copy), now)


def test_every_record_says_how_many_changes_there_were(copy: Path) -> None:
    opened = open_data(settings_of(copy), now)
    for _ in range(3):
        with opened.database.write():
            pass
        opened.log.append(AuditEntry("event", method="test")).result()
    found = [record["generation"] for record in opened.log.newest()][:3]
    assert found == [opened.database.generation - back for back in range(3)]
    opened.close()
    again = open_data(settings_of(copy), now)
    assert again.log.generation == found[0] == again.database.generation
    again.close()


@pytest.mark.attack
def test_a_clock_set_back_is_noticed(copy: Path) -> None:
    # From the newest record, not from now: the copied directory may be as old as the test run.
    opened = open_data(settings_of(copy), now)
    latest = last_moment(opened.database, opened.log)
    opened.close()
    with pytest.raises(FailedPrecondition, match="set the clock right"):
        open_data(settings_of(copy), lambda: latest - timedelta(minutes=10))
    open_data(settings_of(copy), lambda: latest - timedelta(minutes=4)).close()


def test_the_configuration_names_the_appliance_of_the_keyring(copy: Path) -> None:
    settings = dataclasses.replace(settings_of(copy), cluster_id="other")
    with pytest.raises(Tampered):
        open_data(settings, now)
