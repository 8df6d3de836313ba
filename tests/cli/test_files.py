"""Files that commands write: a place for a secret comes before the secret."""

import stat
from pathlib import Path
from typing import Any

import pytest

from appliance.api.access.v1 import service_account_pb2, service_account_service_pb2
from appliance.api.audit.v1 import audit_service_pb2
from appliance.api.nodes.v1 import node_service_pb2
from appliance.cli.files import new_secret
from appliance.core.errors import Denied, FailedPrecondition
from tests.fakes.command_line import Run
from tests.fakes.control_api import FakeApi

TOKEN = service_account_service_pb2.CreateTokenResponse(
    token="shown-once", metadata=service_account_pb2.Token(id="t1")
)
JOIN = node_service_pb2.CreateJoinTokenResponse(token="shown-once")
MAKERS = [
    (("service-account", "create-token", "app"), "ServiceAccountService.CreateToken", TOKEN),
    (("node", "create-join-token", "n2"), "NodeService.CreateJoinToken", JOIN),
]


@pytest.mark.attack
@pytest.mark.parametrize(("noun", "method", "answer"), MAKERS)
def test_no_token_is_made_that_cannot_be_kept(
    command: Run, logged_in: FakeApi, home: Path, noun: tuple[str, ...], method: str, answer: Any
) -> None:
    logged_in.answers[method] = answer
    (home / "file").write_text("kept")
    (home / "file").chmod(0o640)
    for out, said in {
        home / "none" / "token": f"there is no folder {home / 'none'}: make it first",
        home / "file" / "token": f"{home / 'file'} is no folder",
        home / "file": f"{home / 'file'} holds something: choose another name",
    }.items():
        result = command(*noun, "--out", str(out))
        assert (result.code, said in result.err) == (1, True), result.err
        assert ".tmp" not in result.err
    assert logged_in.calls == []
    assert (home / "file").read_text() == "kept"


@pytest.mark.parametrize(("noun", "method", "answer"), MAKERS)
def test_a_token_that_is_refused_leaves_no_file(
    command: Run, logged_in: FakeApi, home: Path, noun: tuple[str, ...], method: str, answer: Any
) -> None:
    del answer
    logged_in.answers[method] = Denied("no")
    folder = home / "tokens"
    folder.mkdir()
    assert command(*noun, "--out", str(folder / "token")).code == 5
    assert list(folder.iterdir()) == []


def test_a_folder_of_somebody_else_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("appliance.core.files.os.open", refuse)
    sentence = f"may not write in the folder {tmp_path}"
    with pytest.raises(FailedPrecondition, match=sentence), new_secret(tmp_path / "token"):
        raise AssertionError("it was opened")


def test_the_token_says_whose_it_is(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["ServiceAccountService.CreateToken"] = TOKEN
    made = command("service-account", "create-token", "app", "--project", "other")
    assert "serviceAccounts/other--app" in made.out
    assert logged_in.calls[0].request.name == "serviceAccounts/other--app"


@pytest.mark.parametrize(
    ("typed", "method"),
    [
        (("get", "app"), "GetServiceAccount"),
        (("create-token", "app"), "CreateToken"),
        (("revoke-token", "app", "t1"), "RevokeToken"),
    ],
)
def test_the_chosen_project_is_the_account_s(
    command: Run,
    logged_in: FakeApi,
    monkeypatch: pytest.MonkeyPatch,
    typed: tuple[str, ...],
    method: str,
) -> None:
    monkeypatch.setenv("APPLIANCE_PROJECT", "third")
    logged_in.answers[f"ServiceAccountService.{method}"] = Denied("no")
    assert command("service-account", *typed).code == 5
    assert logged_in.calls[0].request.name == "serviceAccounts/third--app"


def test_exported_records_are_for_one_person_alone(
    command: Run, logged_in: FakeApi, home: Path
) -> None:
    logged_in.answers["AuditService.ExportRecords"] = [
        audit_service_pb2.ExportRecordsResponse(lines=b"{}\n")
    ]
    logged_in.answers["AuditService.ListSegments"] = audit_service_pb2.ListSegmentsResponse()
    out = home / "records"
    out.write_text("an older export")
    beside = home / "records.archived"
    beside.write_text("of an older export")
    out.chmod(0o644)
    assert command("audit", "export", "--out", str(out)).code == 0
    assert (out.read_bytes(), stat.S_IMODE(out.stat().st_mode)) == (b"{}\n", 0o600)
    assert not beside.exists()
    logged_in.answers["AuditService.ListSegments"] = audit_service_pb2.ListSegmentsResponse(
        archived=b"signed"
    )
    assert command("audit", "export", "--out", str(out)).code == 0
    assert beside.read_bytes() == b"signed"
    lost = command("audit", "export", "--out", str(home / "none" / "records"))
    assert (lost.code, f"there is no folder {home / 'none'}" in lost.err) == (1, True)
