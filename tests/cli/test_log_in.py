"""What `login`, `password`, `session` and the commands about proofs send, print and keep."""

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from appliance.api.access.v1 import (
    user_pb2,
    user_service_pb2,
)
from appliance.api.auth.v1 import auth_service_pb2 as rpc
from appliance.api.nodes.v1 import node_service_pb2
from appliance.cli.authenticator import code_of
from appliance.client.profiles import Profile, Profiles
from appliance.core.errors import (
    FreshMfaRequired,
    InvalidInput,
    PasswordChangeRequired,
    Unauthenticated,
)
from tests.fakes.command_line import Run
from tests.fakes.control_api import FakeApi

LOG_IN = ("login", "--password-file", "-", "--code-file", "-")


def known() -> str:
    profiles = Profiles()
    return profiles.device(profiles.get(), "alice")


@pytest.fixture
def answers(logged_in: FakeApi) -> dict[str, Any]:
    logged_in.answers |= {
        "AuthService.Login": rpc.LoginResponse(token="half", next_step=2),
        "AuthService.VerifyTotp": rpc.VerifyTotpResponse(token="whole", device_token="device-1"),
        "AuthService.ChangePassword": rpc.ChangePasswordResponse(
            token="changed", device_token="device-2"
        ),
    }
    return logged_in.answers


@pytest.mark.parametrize(
    "typed", [LOG_IN, ("password", "change", "--password-file", "-", "--new-password-file", "-")]
)
def test_nothing_that_is_shown_once_is_asked_for_when_it_cannot_be_kept(
    command: Run,
    logged_in: FakeApi,
    answers: dict[str, Any],
    home: Path,
    typed: tuple[str, ...],
) -> None:
    (home / "config" / "appliance" / "devices").touch()
    refused = command(*typed, stdin="pass\n123456\n")
    assert (refused.code, "devices is not a folder" in refused.err) == (1, True)
    assert logged_in.calls == []


def test_what_the_device_is_known_by_is_kept_private_and_sent_next_time(
    command: Run, logged_in: FakeApi, answers: dict[str, Any], home: Path
) -> None:
    assert command(*LOG_IN, stdin="pass\n123456\n").code == 0
    assert known() == "device-1"
    (file,) = (home / "config" / "appliance" / "devices").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    answers["AuthService.VerifyTotp"] = rpc.VerifyTotpResponse(token="again")
    assert command(*LOG_IN, stdin="pass\n123456\n").code == 0
    first, second = logged_in.named("AuthService.Login")
    assert (first.request.device_token, second.request.device_token) == ("", "device-1")
    assert known() == "device-1"


@pytest.mark.attack
def test_a_device_belongs_to_one_user_of_one_context(
    command: Run, logged_in: FakeApi, answers: dict[str, Any]
) -> None:
    command(*LOG_IN, stdin="pass\n123456\n")
    for user in ("bob", "../here.alice", "here.alice", "a" * 300):
        command(*LOG_IN, "--user", user, stdin="pass\n123456\n")
        assert logged_in.named("AuthService.Login")[-1].request.device_token == ""
    profiles = Profiles()
    other = Profile("there", logged_in.address, logged_in.ca_pem.decode(), user="alice")
    profiles.put(other, use=False)
    assert profiles.device(other, "alice") == ""
    profiles.remove("here")
    assert profiles.device(Profile("here", "", ""), "alice") == ""


def test_a_recovery_code_is_sent_with_the_password_too(
    command: Run, logged_in: FakeApi, answers: dict[str, Any]
) -> None:
    files = ("--password-file", "-", "--recovery-code-file", "-")
    assert command("login", *files, stdin="pass\naaaa-bbbb\n").code == 0
    login, verify = logged_in.calls
    assert login.request.recovery_code == verify.request.recovery_code == "aaaa-bbbb"
    assert verify.request.code == ""


def test_a_password_of_somebody_else_s_choice_is_replaced_at_once(
    command: Run, logged_in: FakeApi, answers: dict[str, Any], terminal: list[str]
) -> None:
    answers["AuthService.VerifyTotp"] = rpc.VerifyTotpResponse(
        token="whole", next_step=4, device_token="device-1", recovery_codes=["aaaa-bbbb"]
    )
    terminal += ["first password", "123456", "my own password"]
    result = command("login")
    assert (result.code, result.out) == (0, "aaaa-bbbb\n")
    assert "chosen by somebody else" in result.err
    (change,) = logged_in.named("AuthService.ChangePassword")
    assert (change.token, change.request.password) == ("whole", "first password")
    assert change.request.new_password == "my own password"
    assert Profiles().token(Profiles().get()) == "changed"
    assert known() == "device-2"


def test_without_a_terminal_the_new_password_comes_from_a_file(
    command: Run, logged_in: FakeApi, answers: dict[str, Any]
) -> None:
    answers["AuthService.VerifyTotp"] = rpc.VerifyTotpResponse(token="whole", next_step=4)
    refused = command(*LOG_IN, stdin="first\n123456\n")
    assert (refused.code, "--new-password-file" in refused.err) == (4, True)
    assert Profiles().token(Profiles().get()) == "whole"
    given = command(*LOG_IN, "--new-password-file", "-", stdin="first\n123456\nmy own password\n")
    assert given.code == 0
    (change,) = logged_in.named("AuthService.ChangePassword")
    assert change.request.new_password == "my own password"


def test_changing_the_password_asks_for_a_fresh_code_like_every_other_command(
    command: Run, logged_in: FakeApi, answers: dict[str, Any], terminal: list[str]
) -> None:
    replies = [FreshMfaRequired("fresh"), answers["AuthService.ChangePassword"]]
    answers["AuthService.ChangePassword"] = lambda _: replies.pop(0)
    terminal += ["old password", "new password", "123456"]
    result = command("password", "change")
    assert (result.code, result.out) == (0, "")
    assert "the password of alice is changed" in result.err
    assert Profiles().token(Profiles().get()) == "changed"
    assert [call.name.partition(".")[2] for call in logged_in.calls] == [
        "ChangePassword",
        "VerifyTotp",
        "ChangePassword",
    ]
    for words in (result.out, result.err):
        assert "old password" not in words
        assert "new password" not in words.replace("New password", "")


def test_a_session_that_must_change_its_password_says_how(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["AuthService.WhoAmI"] = PasswordChangeRequired("choose a new password")
    result = command("whoami")
    assert (result.code, "`appliance password change`" in result.err) == (4, True)
    answers = "this session can only choose a new password, with `appliance password change`"
    logged_in.answers["AuthService.WhoAmI"] = PasswordChangeRequired(answers)
    assert command("whoami").err.count("appliance password change") == 1


def test_sessions_are_listed_and_ended(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers |= {
        "AuthService.ListSessions": rpc.ListSessionsResponse(
            sessions=[
                rpc.Session(id="a1", current=True, step=1),
                rpc.Session(id="b2", step=1),
                rpc.Session(id="c3", step=2),
            ]
        ),
        "AuthService.EndSession": rpc.EndSessionResponse(),
    }
    table = command("session", "list").out
    assert table.splitlines()[0].split()[0] == "SESSION"
    listed = json.loads(command("session", "list", "-o", "json").out)
    assert [each["id"] for each in listed] == ["a1", "b2", "c3"]
    assert "ended 1 session\n" in command("session", "end", "b2").err
    assert "ended 2 sessions" in command("session", "end", "--others").err
    ended = [call.request.session_id for call in logged_in.named("AuthService.EndSession")]
    assert ended == ["b2", "b2", "c3"]
    assert command("session", "end").code == 2
    assert command("session", "end", "b2", "--others").code == 2


def test_what_an_administrator_resets(command: Run, logged_in: FakeApi) -> None:
    bob = user_pb2.User(name="users/bob", must_change_password=True)
    logged_in.answers |= {
        "UserService.ResetPassword": bob,
        "UserService.ResetFactor": bob,
        "UserService.EndUserSessions": user_service_pb2.EndUserSessionsResponse(sessions=3),
    }
    give = ("user", "reset-password", "bob", "--password-file", "-")
    assert command(*give, stdin="next one\n").code == 3
    assert logged_in.calls == []
    reset = command(*give, "--yes", stdin="next one\n")
    assert (reset.code, "next one" in reset.out + reset.err) == (0, False)
    assert "every session of users/bob has ended" in reset.err
    assert command("user", "reset-factor", "bob").code == 3
    assert command("user", "reset-factor", "bob", "--yes").code == 0
    assert json.loads(command("user", "end-sessions", "bob", "-o", "json").out) == {"sessions": 3}
    assert [(call.name.partition(".")[2], call.request.name) for call in logged_in.calls] == [
        ("ResetPassword", "users/bob"),
        ("ResetFactor", "users/bob"),
        ("EndUserSessions", "users/bob"),
    ]
    assert logged_in.calls[0].request.password == "next one"


def test_join_tokens_are_listed_and_revoked(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers |= {
        "NodeService.ListJoinTokens": node_service_pb2.ListJoinTokensResponse(
            join_tokens=[
                node_service_pb2.JoinToken(id="t1", node="nodes/gpu-1", creator="users/alice"),
                node_service_pb2.JoinToken(id="t2", gateway="gateways/gw-2"),
            ]
        ),
        "NodeService.RevokeJoinToken": node_service_pb2.RevokeJoinTokenResponse(),
    }
    first, second = command("node", "list-join-tokens").out.splitlines()[1:]
    assert first.split() == ["t1", "nodes/gpu-1", "alice"]
    assert second.split() == ["t2", "gateways/gw-2", "offline"]
    assert command("node", "revoke-join-token", "t1").code == 0
    (call,) = logged_in.named("NodeService.RevokeJoinToken")
    assert call.request.token_id == "t1"


def test_a_refused_log_in_forgets_nothing(
    command: Run, logged_in: FakeApi, answers: dict[str, Any]
) -> None:
    command(*LOG_IN, stdin="pass\n123456\n")
    answers["AuthService.Login"] = Unauthenticated("wrong")
    assert command(*LOG_IN, stdin="pass\n123456\n").code == 4
    assert known() == "device-1"


def test_a_first_log_in_of_a_script_shows_it_no_secret(
    command: Run, logged_in: FakeApi, answers: dict[str, Any]
) -> None:
    answers["AuthService.Login"] = rpc.LoginResponse(token="half", next_step=3)
    result = command("login", "--password-file", "-", stdin="first\n")
    assert (result.code, "log in in a terminal" in result.err) == (4, True)
    assert logged_in.named("AuthService.EnrollTotp") == []


def test_a_refused_new_password_may_be_chosen_again(
    command: Run, logged_in: FakeApi, answers: dict[str, Any], terminal: list[str]
) -> None:
    answers["AuthService.VerifyTotp"] = rpc.VerifyTotpResponse(token="whole", next_step=4)
    replies = [InvalidInput("too short"), answers["AuthService.ChangePassword"]]
    answers["AuthService.ChangePassword"] = lambda _: replies.pop(0)
    terminal += ["first password", "123456", "short", "my own password"]
    result = command("login")
    assert (result.code, "too short" in result.err) == (0, True)
    assert Profiles().token(Profiles().get()) == "changed"
    answers["AuthService.ChangePassword"] = InvalidInput("too short")
    terminal += ["first password", "123456", "a", "b", "c"]
    given_up = command("login")
    assert given_up.code == 1
    assert "You are logged in: go on with `appliance password change`" in given_up.err
    assert len(logged_in.named("AuthService.ChangePassword")) == 5


def test_a_mistyped_fresh_code_may_be_typed_again(
    command: Run, logged_in: FakeApi, answers: dict[str, Any], terminal: list[str]
) -> None:
    fresh, user = [FreshMfaRequired("fresh")], user_pb2.User(name="users/bob")
    answers["UserService.LockUser"] = lambda _: fresh.pop(0) if fresh else user
    codes = [Unauthenticated("wrong code"), answers["AuthService.VerifyTotp"]]
    answers["AuthService.VerifyTotp"] = lambda _: codes.pop(0)
    # What is no code reaches nobody, and counts against nobody.
    terminal += ["12345", "aaaa-bbbb", "\uff11\uff12\uff13\uff14\uff15\uff16", "111111", "222222"]
    result = command("user", "lock", "bob")
    assert (result.code, "wrong code" in result.err) == (0, True)
    assert result.err.count("six digits") == 3
    sent = [call.request.code for call in logged_in.named("AuthService.VerifyTotp")]
    assert sent == ["111111", "222222"]


def test_three_wrong_fresh_codes_end_the_command_and_not_the_session(
    command: Run, logged_in: FakeApi, answers: dict[str, Any], terminal: list[str]
) -> None:
    answers["UserService.LockUser"] = FreshMfaRequired("fresh")
    answers["AuthService.VerifyTotp"] = Unauthenticated("wrong code")
    terminal += ["111111", "222222", "333333"]
    result = command("user", "lock", "bob")
    assert (result.code, "appliance login" in result.err) == (4, False)
    assert "error: wrong code" in result.err
    assert Profiles().token(Profiles().get()) == "old-token"


@pytest.mark.parametrize(("where", "said"), [("call", True), ("prompt", False)])
def test_interrupting_says_what_goes_on(
    command: Run,
    answers: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    *,
    said: bool,
) -> None:
    del answers

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("appliance.cli.prompts.interactive", lambda: True)
    monkeypatch.setattr("click.termui.visible_prompt_func", interrupt)
    monkeypatch.setattr("click.termui.hidden_prompt_func", interrupt)
    if where == "call":
        monkeypatch.setattr("appliance.cli.session.CommandSession.call", interrupt)
        result = command(*LOG_IN, stdin="pass\n123456\n")
    else:
        result = command("login")
    assert (result.code, "work on the server goes on" in result.err) == (130, said)
    assert "interrupted" in result.err


def test_a_code_file_without_a_code_is_wrong_usage(
    command: Run, logged_in: FakeApi, answers: dict[str, Any]
) -> None:
    answers["UserService.LockUser"] = FreshMfaRequired("fresh")
    result = command("user", "lock", "bob", "--code-file", "-", stdin="12345\n")
    assert (result.code, "six digits" in result.err) == (2, True)
    assert logged_in.named("AuthService.VerifyTotp") == []


def test_a_used_recovery_code_asks_for_another_one(
    command: Run, logged_in: FakeApi, answers: dict[str, Any]
) -> None:
    answers["AuthService.VerifyTotp"] = Unauthenticated("wrong: wait for the next one")
    files = ("--password-file", "-", "--recovery-code-file", "-")
    result = command("login", *files, stdin="pass\naaaa-bbbb\n")
    assert (result.code, "take another one" in result.err) == (4, True)
    assert "wait for the next" not in result.err
    assert logged_in.named("AuthService.VerifyTotp")[0].request.recovery_code == "aaaa-bbbb"


def test_a_program_keeps_its_authenticator_in_a_file(
    command: Run, logged_in: FakeApi, answers: dict[str, Any], tmp_path: Path
) -> None:
    uri = "otpauth://totp/Appliance:alice?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Appliance"
    answers["AuthService.Login"] = rpc.LoginResponse(token="partial", next_step=3)
    answers["AuthService.EnrollTotp"] = rpc.EnrollTotpResponse(provisioning_uri=uri)
    answers["AuthService.VerifyTotp"] = rpc.VerifyTotpResponse(token="whole", next_step=1)
    out = tmp_path / "authenticator"
    line = ("login", "--password-file", "-", "--authenticator-out", str(out))
    result = command(*line, stdin="a password\n")
    assert (result.code, uri in result.out + result.err) == (0, False)
    assert (out.read_text(), stat.S_IMODE(out.stat().st_mode)) == (uri + "\n", 0o600)
    (proof,) = logged_in.named("AuthService.VerifyTotp")
    assert re.fullmatch(r"\d{6}", proof.request.code)
    # What may still be needed is not replaced, and then nothing is enrolled.
    assert "holds something" in command(*line, stdin="a password\n").err
    assert len(logged_in.named("AuthService.EnrollTotp")) == 1


@pytest.mark.parametrize(
    ("seconds", "code"), [(59, "287082"), (1111111109, "081804"), (20000000000, "353130")]
)
def test_codes_are_those_of_rfc_6238(seconds: int, code: str) -> None:
    uri = "otpauth://totp/x?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
    assert code_of(uri, seconds) == code
