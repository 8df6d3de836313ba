"""A running control plane, and a start, against somebody who can write `state.db`."""

from __future__ import annotations

import json
import shutil
import tarfile
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from appliance.api.auth.v1 import auth_service_pb2 as auth_rpc
from appliance.api.auth.v1 import auth_service_pb2_grpc as auth_grpc
from appliance.api.projects.v1 import project_service_pb2 as projects_rpc
from appliance.api.projects.v1 import project_service_pb2_grpc as projects_grpc
from appliance.control.audit.system import SystemRecords
from appliance.control.bootstrap import forged_rows, rescuing
from appliance.control.bootstrap.opening import STATE_TAMPERED, open_data
from appliance.control.bootstrap.row_checks import RowChecks, RowMetrics
from appliance.control.store.row_macs import SIGNED
from appliance.core.errors import Denied, FailedPrecondition, Tampered, Unauthenticated
from appliance.core.files import read_secret
from appliance.crypto.keys import Keyring, RootKey
from tests.fakes import rows as attacker
from tests.fakes.appliance import ADMINISTRATOR, Appliance, bearer, error_of, settings_of

RELEASED = Path(__file__).parents[2] / "data" / "0.1.0.tar"


def now() -> datetime:
    return datetime.now(UTC)


def state_of(appliance: Appliance) -> Path:
    return Path(appliance.database.path)


def records(folder: Path) -> list[dict[str, Any]]:
    lines = b"".join(path.read_bytes() for path in sorted((folder / "audit").glob("0*.log")))
    return [json.loads(line) for line in lines.splitlines()]


async def who(appliance: Appliance, token: str) -> Any:
    auth = appliance.api(auth_grpc.AuthServiceStub)
    return await auth.WhoAmI(auth_rpc.WhoAmIRequest(), metadata=bearer(token))


# --- while it is up -------------------------------------------------------------------------------


@pytest.mark.attack
@pytest.mark.parametrize(
    ("what", "column"),
    [
        ("another user's", "user = 'alice'"),
        ("a longer one", "expire_time = expire_time + 3600000000"),
        ("a second factor of just now", "mfa_time = mfa_time + 1"),
    ],
)
async def test_a_session_that_was_written_opens_nothing(
    appliance: Appliance, what: str, column: str
) -> None:
    del what
    appliance.user("mallory")
    token = appliance.session("mallory")
    assert (await who(appliance, token)).principal == "users/mallory"
    with attacker.somebody(state_of(appliance)) as raw:
        assert raw.execute(f"UPDATE session SET {column} WHERE user = 'mallory'").rowcount == 1
    assert isinstance(await error_of(who(appliance, token)), Unauthenticated)


@pytest.mark.attack
async def test_a_revoked_session_does_not_come_back(appliance: Appliance) -> None:
    token = appliance.session(ADMINISTRATOR)
    with attacker.somebody(state_of(appliance)) as raw:
        kept = raw.execute("SELECT * FROM session").fetchall()
        tags = raw.execute("SELECT * FROM row_mac WHERE row LIKE 'session/%'").fetchall()
    auth = appliance.api(auth_grpc.AuthServiceStub)
    await auth.Logout(auth_rpc.LogoutRequest(), metadata=bearer(token))
    with attacker.somebody(state_of(appliance)) as raw:
        marks = ", ".join("?" * len(kept[0]))
        raw.executemany(f"INSERT INTO session VALUES ({marks})", kept)
        raw.executemany("INSERT INTO row_mac VALUES (?, ?)", tags)
    assert isinstance(await error_of(who(appliance, token)), Unauthenticated)


@pytest.mark.attack
async def test_a_binding_that_was_written_gives_nothing_even_when_the_policy_is_made_anew(
    appliance: Appliance,
) -> None:
    appliance.user("mallory")
    token = appliance.session("mallory")
    with attacker.somebody(state_of(appliance)) as raw:
        raw.execute(
            "INSERT INTO binding SELECT 'forged', 'user:mallory', role, domain, creator, "
            "create_time FROM binding WHERE subject = 'user:alice'AND domain = '/platform'"
        )
    with appliance.database.write() as transaction:
        # Raised by something else: everything is read again.
        transaction.change_policy()
    create = projects_rpc.CreateProjectRequest(project_id="mine")
    projects = appliance.api(projects_grpc.ProjectServiceStub)
    error = await error_of(projects.CreateProject(create, metadata=bearer(token)))
    assert isinstance(error, Denied)
    await projects.CreateProject(create, metadata=bearer(appliance.session(ADMINISTRATOR)))


@pytest.mark.attack
async def test_what_is_found_is_said_and_recorded_once(
    appliance: Appliance, caplog: pytest.LogCaptureFixture
) -> None:
    database = appliance.database
    log = appliance.control.base.opened.log
    checks = RowChecks(database, SystemRecords(log))
    attacker.change(state_of(appliance), "user")
    attacker.take_away(state_of(appliance), "binding")
    checks.check_all_rows()
    checks.report_findings()
    checks.check_all_rows()
    checks.report_findings()
    told = [record for record in appliance.records() if record["method"] == STATE_TAMPERED]
    assert [record["details"]["made"]["change"] for record in told] == [
        "taken away",
        "taken away",
        "changed",
    ]
    assert told[-1]["details"]["made"]["row"] == "user/alice"
    assert {record["outcome"] for record in told} == {"OBJECT_TAMPERED"}
    assert "Find out who can write the data directory" in caplog.text
    (gauge,) = RowMetrics(database).collect()
    assert gauge.samples[0].value == 3


# --- while it is down -----------------------------------------------------------------------------


@pytest.mark.attack
def test_a_start_is_refused_and_recorded_once(copy: Path) -> None:
    attacker.change(copy / "state.db", "user")
    for _ in range(2):
        with pytest.raises(Tampered, match="user/alice: changed") as refused:
            open_data(settings_of(copy), now)
        assert "accept-state" in refused.value.message
    told = [record for record in records(copy) if record["method"] == STATE_TAMPERED]
    assert [record["details"]["made"] for record in told] == [
        {"rows": ["user/alice: changed"], "count": 1}
    ]


@pytest.mark.attack
@pytest.mark.parametrize(
    "forget",
    [
        "UPDATE meta SET row_macs = NULL",
        "UPDATE meta SET row_columns = NULL, row_macs = NULL",
        "UPDATE meta SET row_columns = '{}'",
        "UPDATE meta SET row_macs = x''",
        "DELETE FROM row_mac",
        "DROP TABLE row_mac",
    ],
)
def test_a_state_without_its_macs_is_not_taken_for_an_old_one(copy: Path, forget: str) -> None:
    with attacker.somebody(copy / "state.db") as raw:
        raw.execute(forget)
        raw.execute("UPDATE user SET password_hash = 'mine'")
    with pytest.raises((Tampered, FailedPrecondition)):
        open_data(settings_of(copy), now)


@pytest.mark.attack
def test_nor_is_one_whose_version_was_set_back(copy: Path) -> None:
    with attacker.somebody(copy / "state.db") as raw:
        raw.execute("DROP TABLE row_mac")
        raw.execute("ALTER TABLE meta DROP COLUMN row_macs")
        raw.execute("ALTER TABLE meta DROP COLUMN row_columns")
        raw.execute("UPDATE alembic_version SET version_num = '0010'")
    with pytest.raises(Tampered, match="the MACs were taken away"):
        open_data(settings_of(copy), now)


def test_a_state_of_before_is_signed_once(tmp_path: Path) -> None:
    with tarfile.open(RELEASED) as archive:
        archive.extractall(tmp_path / "kept", filter="tar")
    data = tmp_path / "kept" / "data"
    facts = json.loads(RELEASED.with_suffix(".json").read_text())
    moment = datetime.fromisoformat(facts["stopped"])
    shutil.copy2(data / "keyring.sealed", tmp_path / "older")
    open_data(settings_of(data), lambda: moment).close()
    cluster = tomllib.loads((data / "control.toml").read_text())["cluster_id"]
    root = RootKey.read(data / "root.key")
    assert Keyring.open(read_secret(data / "keyring.sealed"), root, cluster).rows_signed
    attacker.change(data / "state.db", "user")
    with pytest.raises(Tampered, match="changed"):
        open_data(settings_of(data), lambda: moment)
    # A copy of the keyring of before opens what it opened, and believes no more.
    shutil.copy2(tmp_path / "older", data / "keyring.sealed")
    with pytest.raises(Tampered, match="changed"):
        open_data(settings_of(data), lambda: moment)


@pytest.mark.attack
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("UPDATE meta SET row_macs = NULL", "the MACs were taken away"),
        ("UPDATE meta SET generation = generation + 1", "another generation"),
        (
            "CREATE TRIGGER mine AFTER DELETE ON device BEGIN SELECT 1; END",
            "sqlite_schema: changed",
        ),
    ],
)
def test_what_nobody_can_tell_apart_is_not_accepted(copy: Path, change: str, says: str) -> None:
    with attacker.somebody(copy / "state.db") as raw:
        raw.execute(change)
        raw.execute("UPDATE user SET password_hash = 'mine'")
    for _ in range(2):
        with pytest.raises(Tampered, match="only a backup helps") as refused:
            rescuing.accept_state(settings_of(copy), now)
        assert says in refused.value.message
    with pytest.raises(Tampered):
        open_data(settings_of(copy), now)


@pytest.mark.attack
def test_what_was_written_while_it_is_accepted_is_not_signed(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacker.change(copy / "state.db", "user")
    closed = forged_rows.closed

    def write_more(found: Any) -> Any:
        with attacker.somebody(copy / "state.db") as raw:
            raw.execute(
                "INSERT INTO binding SELECT 'forged', 'user:mallory', role, domain, creator, "
                "create_time FROM binding WHERE domain = '*'"
            )
        return closed(found)

    monkeypatch.setattr(forged_rows, "closed", write_more)
    rescuing.accept_state(settings_of(copy), now)
    with pytest.raises(Tampered, match="binding/forged: added"):
        open_data(settings_of(copy), now)


def fill(folder: Path) -> None:
    opened = open_data(settings_of(folder), now)
    with opened.database.write() as transaction:
        transaction.run(attacker.tables.binding.delete())
        transaction.run(attacker.tables.gateway.delete())
        transaction.run(attacker.tables.join_token.delete())
        transaction.run(attacker.tables.user.delete())
    attacker.fill(opened.database)
    opened.close()


KEPT = {"artifact_version", "checkpoint", "project_key", "version_key"}


def test_for_each_covered_table_it_is_said_what_is_done_when_it_is_accepted() -> None:
    """Keys and versions open for the row they were made for; a checkpoint is read by its digest."""
    assert set(SIGNED) - set(forged_rows.CLOSING) == KEPT


@pytest.mark.attack
@pytest.mark.parametrize("table", sorted(SIGNED))
def test_what_is_accepted_opens_nothing(copy: Path, table: str) -> None:
    fill(copy)
    attacker.change(copy / "state.db", table)
    with pytest.raises(Tampered):
        open_data(settings_of(copy), now)
    accepted = rescuing.accept_state(settings_of(copy), now)
    assert {row.partition("/")[0] for row in accepted.rows} == {table}
    opened = open_data(settings_of(copy), now)
    closed = {
        "user": "SELECT locked FROM user",
        "totp": "SELECT locked FROM user",
        "service_account": "SELECT locked FROM service_account",
        "node": "SELECT state = 'EVICTED' FROM node",
        "gateway": "SELECT state = 'EVICTED' FROM gateway",
        "job": "SELECT state = 'CANCELLED' FROM job",
        "project": "SELECT allow_downloads = 0 FROM project",
    }.get(table, f"SELECT count(*) = 0 FROM {table}")
    with attacker.somebody(copy / "state.db") as raw:
        right = raw.execute(closed).fetchone() == (1,)
    assert right is (table not in KEPT)
    assert bool(accepted.closed) is right
    opened.close()
    told = [record for record in records(copy) if record["method"] == "accept-state"]
    assert told[0]["details"]["rows"] == list(accepted.rows)
    with pytest.raises(FailedPrecondition, match="nothing to accept"):
        rescuing.accept_state(settings_of(copy), now)


@pytest.mark.attack
def test_whoever_accepts_a_row_is_told_of_older_ones_in_its_table(copy: Path) -> None:
    """One row that anybody would notice must not hide the one that matters."""
    fill(copy)
    path = copy / "state.db"

    def lock() -> None:
        opened = open_data(settings_of(copy), now)
        with opened.database.write() as transaction:
            transaction.run(attacker.tables.user.update().values(locked=True))
        opened.close()

    attacker.rolled_back(path, "user", lock)
    attacker.copy(path, "user")
    accepted = rescuing.accept_state(settings_of(copy), now)
    assert accepted.rows == ("user/alice2: added", "user: older rows were put back")
