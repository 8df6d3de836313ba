"""People and applications on the command line: described, deleted, their tokens replaced."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from appliance.api.access.v1 import (
    principal_details_pb2,
    service_account_pb2,
    service_account_service_pb2,
    user_pb2,
    user_service_pb2,
)
from appliance.api.auth.v1 import auth_service_pb2
from appliance.cli import whoami
from appliance.core.errors import NotFound, UnknownMethod
from tests.fakes.command_line import Run
from tests.fakes.control_api import FakeApi

APP = "serviceAccounts/demo--app"
END = "appliance job cancel projects/demo/jobs/first"
MADE = Timestamp(seconds=1_000_000_000)
DETAILS = principal_details_pb2.PrincipalDetails(
    roles=["owner@projects/demo"],
    sessions=[auth_service_pb2.Session(id="5e55", source="ipv4:192.0.2.1:5", create_time=MADE)],
    creations=[
        principal_details_pb2.Creation(
            what="projects/demo/jobs/first", end_command=END, create_time=MADE
        )
    ],
    not_shown=2,
)
BOB = user_pb2.User(name="users/bob", description="of the night\x1b shift", details=DETAILS)


def test_a_user_is_described_with_all_that_is_held(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["UserService.GetUser"] = BOB
    result = command("user", "describe", "bob")
    (call,) = logged_in.named("UserService.GetUser")
    assert call.request.view == user_service_pb2.USER_VIEW_FULL
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert "Description: of the night\N{REPLACEMENT CHARACTER} shift" in lines
    for heading, row in (
        ("Roles:", "owner projects/demo"),
        ("Sessions:", "5e55 ipv4:192.0.2.1:5"),
    ):
        assert row in lines[lines.index(heading) + 2]
    assert lines[-3:-1] == ["Made by it, and going on; to end it:", END]
    assert lines[-1] == (
        "and 2 more that you may not see, or beyond 100 of a kind: ask somebody with a role in all "
        "projects"
    )
    shown = json.loads(command("user", "describe", "bob", "-o", "json").out)
    assert shown["goes_on"][0]["end_command"] == END
    assert (shown["roles"], shown["not_shown"]) == (
        [{"role": "owner", "scope": "projects/demo"}],
        2,
    )
    command("user", "get", "bob")
    *_, call = logged_in.named("UserService.GetUser")
    assert call.request.view == user_service_pb2.USER_VIEW_UNSPECIFIED


@pytest.mark.parametrize("verb", ["lock", "delete"])
def test_what_somebody_made_is_said_when_they_go(
    command: Run, logged_in: FakeApi, verb: str
) -> None:
    logged_in.answers["UserService.LockUser"] = BOB
    logged_in.answers["UserService.DeleteUser"] = user_service_pb2.DeleteUserResponse(user=BOB)
    result = command("user", verb, "bob", *(["--yes"] if verb == "delete" else []))
    assert result.code == 0
    assert (
        f"made by them, and going on; nothing of it ends by itself. To end it:\n  {END}\n"
        in result.err
    )
    assert "and 2 more that you may not see" in result.err


@pytest.mark.parametrize(
    ("noun", "rpc"),
    [
        ("user", "UserService.DeleteUser"),
        ("service-account", "ServiceAccountService.DeleteServiceAccount"),
    ],
)
def test_nobody_is_deleted_without_a_yes(
    command: Run, logged_in: FakeApi, noun: str, rpc: str
) -> None:
    assert command(noun, "delete", "bob").code == 3
    assert logged_in.named(rpc) == []


def test_an_update_names_what_was_given(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["UserService.UpdateUser"] = BOB
    account = service_account_pb2.ServiceAccount(name=APP)
    logged_in.answers["ServiceAccountService.UpdateServiceAccount"] = account
    assert command("user", "update", "bob", "--description", "").code == 0
    (call,) = logged_in.named("UserService.UpdateUser")
    assert list(call.request.update_mask.paths) == ["description"]
    assert command("service-account", "update", "app", "--no-locked", "--etag", "e").code == 0
    (call,) = logged_in.named("ServiceAccountService.UpdateServiceAccount")
    assert list(call.request.update_mask.paths) == ["locked"]
    assert (call.request.service_account.name, call.request.service_account.etag) == (APP, "e")
    assert command("service-account", "update", "app").code == 2


def test_a_rotated_token_goes_to_a_file(command: Run, logged_in: FakeApi, tmp_path: Path) -> None:
    answer = service_account_service_pb2.RotateTokenResponse(
        token="sla_svc_new",
        metadata=service_account_pb2.Token(id="7e57", replaces="01d", expire_time=MADE),
        replaced=service_account_pb2.Token(id="01d", expire_time=MADE),
    )
    logged_in.answers["ServiceAccountService.RotateToken"] = answer
    file = tmp_path / "app.token"
    asked = ("service-account", "rotate-token", "app", "01d", "--overlap-hours", "0")
    result = command(*asked, "--out", str(file))
    assert (result.code, file.read_text()) == (0, "sla_svc_new\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "sla_svc_new" not in result.out + result.err
    (call,) = logged_in.named("ServiceAccountService.RotateToken")
    assert (call.request.name, call.request.token_id) == (APP, "01d")
    # A zero that was given is one; what was not given is the server's to say.
    assert (call.request.HasField("overlap_hours"), call.request.overlap_hours) == (True, 0)
    assert not call.request.HasField("lifetime_days")
    assert command(*asked, "--out", str(file)).code == 1
    assert len(logged_in.named("ServiceAccountService.RotateToken")) == 1


def test_tokens_are_listed_by_maker_and_by_what_nobody_uses(
    command: Run, logged_in: FakeApi
) -> None:
    token = service_account_pb2.Token(
        id="7e57", service_account=APP, creator="users/bob", create_time=MADE, expire_time=MADE
    )
    listed = service_account_service_pb2.ListTokensResponse(tokens=[token])
    logged_in.answers["ServiceAccountService.ListTokens"] = listed
    result = command(
        "service-account", "list-tokens", "--made-by", "bob", "--unused-days", "60", "--everywhere"
    )
    (call,) = logged_in.named("ServiceAccountService.ListTokens")
    asked = call.request
    assert (asked.scope, asked.creator, asked.unused_days) == ("projects/-", "users/bob", 60)
    assert "never seen" in result.out
    shown = command("service-account", "list-tokens", "--account", "app", "-o", "json")
    (row,) = json.loads(shown.out)
    assert (row["service_account"], row["creator"]) == (APP, "users/bob")
    *_, call = logged_in.named("ServiceAccountService.ListTokens")
    assert (call.request.scope, call.request.service_account) == ("projects/demo", APP)


def test_who_am_i_says_what_i_may_do_here(
    command: Run, logged_in: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = auth_service_pb2.WhoAmIResponse(principal="users/vera", roles=["viewer@projects/demo"])
    logged_in.answers["AuthService.WhoAmI"] = who

    def may(request: Any) -> Any:
        if request.scope == "projects/gone":
            return NotFound("there is no projects/gone, or you hold no role there")
        here = ["jobs.get", "jobs.list", "models.get"] if request.scope == "projects/demo" else []
        return auth_service_pb2.ListMyPermissionsResponse(permissions=here)

    logged_in.answers["AuthService.ListMyPermissions"] = may
    assert command("whoami").out == (
        "Principal: users/vera\n"
        "Roles:     viewer@projects/demo\n"
        "May in projects/demo:\n"
        "  jobs: get, list\n"
        "  models: get\n"
    )
    shown = json.loads(command("whoami", "-o", "json").out)
    assert shown["permissions"]["projects/demo"] == ["jobs.get", "jobs.list", "models.get"]
    monkeypatch.setattr(whoami, "on_terminal", lambda: True)
    monkeypatch.setattr(whoami, "terminal_width", lambda: 16)
    assert "\n  jobs: get,\n    list\n  models: get\n" in command("whoami").out
    assert command("whoami", "--project", "gone").out.endswith("May do nothing in projects/gone\n")


def test_who_am_i_of_an_older_server_says_so(command: Run, logged_in: FakeApi) -> None:
    who = auth_service_pb2.WhoAmIResponse(principal="users/vera")
    logged_in.answers["AuthService.WhoAmI"] = who
    logged_in.answers["AuthService.ListMyPermissions"] = UnknownMethod("no such call")
    result = command("whoami")
    assert (result.code, result.out) == (0, "Principal: users/vera\n")
    assert "the server is older than this command" in result.err
