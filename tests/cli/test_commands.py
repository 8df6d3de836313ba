"""What commands send, print and end with, against a server that answers as told."""

import dataclasses
import json
import re
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format, timestamp_pb2

from appliance.api.access.v1 import (
    binding_pb2,
    service_account_pb2,
    service_account_service_pb2,
    user_pb2,
)
from appliance.api.auth.v1 import auth_service_pb2
from appliance.api.data.v1 import dataset_pb2, dataset_service_pb2
from appliance.api.inference.v1 import generation_pb2, inference_service_pb2
from appliance.api.jobs.v1 import (
    checkpoint_pb2,
    checkpoint_service_pb2,
    job_log_pb2,
    job_pb2,
    job_service_pb2,
)
from appliance.api.nodes.v1 import node_pb2, node_service_pb2
from appliance.api.projects.v1 import project_pb2, project_service_pb2
from appliance.api.serving.v1 import (
    endpoint_pb2,
    endpoint_service_pb2,
    gateway_service_pb2,
)
from appliance.api.system.v1 import system_service_pb2
from appliance.cli import ask
from appliance.cli.command import Shared
from appliance.cli.main import NOUNS
from appliance.cli.session import CommandSession
from appliance.client.profiles import Profiles
from appliance.core.errors import (
    AlreadyExists,
    ApplianceError,
    Denied,
    Exhausted,
    FreshMfaRequired,
    InvalidInput,
    MfaRequired,
    NotFound,
    Unauthenticated,
    Unavailable,
    UnknownMethod,
)
from tests.fakes.command_line import Run
from tests.fakes.control_api import REQUEST_ID, FakeApi

DEMO = "projects/demo"
ID = "22222222-2222-4222-8222-222222222222"


def job(state: str, **fields: Any) -> job_pb2.Job:
    return job_pb2.Job(name=f"{DEMO}/jobs/one", state=f"STATE_{state}", **fields)


def test_a_resource_as_table_json_and_yaml(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["ProjectService.CreateProject"] = project_pb2.Project(
        name="projects/p", description="d"
    )
    create = ("project", "create", "p", "--description", "d")
    headings = ["PROJECT", "DOWNLOADS", "CREATED", "DESCRIPTION"]
    assert command(*create).out.split() == [*headings, "p", "no", "d"]
    expected = {"name": "projects/p", "description": "d", "allow_downloads": False, "etag": ""}
    assert json.loads(command(*create, "-o", "json").out) == expected
    assert yaml.safe_load(command(*create, "-o", "yaml").out) == expected
    request = logged_in.calls[0].request
    assert (request.project_id, request.project.description) == ("p", "d")
    assert logged_in.calls[0].token == "old-token"


def test_a_list_is_an_array(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["DatasetService.ListDatasets"] = dataset_service_pb2.ListDatasetsResponse(
        datasets=[dataset_pb2.Dataset(name=f"{DEMO}/datasets/docs")]
    )
    found = json.loads(command("dataset", "list", "-o", "json").out)
    assert [each["name"] for each in found] == [f"{DEMO}/datasets/docs"]
    assert logged_in.calls[0].request.parent == DEMO


@pytest.mark.parametrize(
    ("error", "code", "hint"),
    [
        (Denied("no"), 5, "hint: `appliance whoami` shows your roles\n"),
        (NotFound("none"), 6, "list"),
        (Unauthenticated("who"), 4, "login"),
        (MfaRequired("code"), 4, "login"),
        (FreshMfaRequired("fresh"), 4, "--code-file"),
        (AlreadyExists("taken"), 1, ""),
        (Exhausted("full", retry_after=5), 1, "try again in 5 seconds"),
        (Exhausted("full: wait 5 seconds", retry_after=5), 1, "5 seconds\nrequest: "),
        (Exhausted("full", retry_after=0.2), 1, "try again in 1 second"),
    ],
)
def test_errors_are_a_sentence_a_hint_and_a_code(
    command: Run, logged_in: FakeApi, error: ApplianceError, code: int, hint: str
) -> None:
    logged_in.answers["ProjectService.GetProject"] = error
    result = command("project", "get", "p")
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith(f"error: {error.message}\n")
    assert hint in result.err
    assert f"request: {REQUEST_ID} ({error.reason})" in result.err


def test_wrong_fields_are_named(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["ProjectService.CreateProject"] = InvalidInput(
        "the request is wrong", fields={"project_id": "too long"}
    )
    result = command("project", "create", "p")
    assert (result.code, "project_id: too long" in result.err) == (1, True)


def test_a_server_that_is_away(command: Run, logged_in: FakeApi) -> None:
    command("context", "add", "away", "--server", "127.0.0.1:1", "--ca", _ca(logged_in))
    result = command("status")
    assert (result.code, result.err.count("127.0.0.1:1")) == (7, 1)
    assert "appliance status" not in result.err
    assert "`appliance up --data-dir D` starts one" in result.err


def _ca(api: FakeApi) -> str:
    path = Path(Profiles()._folder) / "ca.pem"
    path.write_bytes(api.ca_pem)
    return str(path)


def test_wrong_usage_is_2(command: Run) -> None:
    assert command("nothing").code == 2
    assert command("project", "create").code == 2
    assert command("job", "train", "x", "--mesh", "depth=2").code == 2
    assert command("audit", "verify", "--public-key", "/dev/null").code == 2


def test_without_a_context_the_way_to_one_is_shown(command: Run) -> None:
    result = command("project", "list")
    assert (result.code, "context add" in result.err) == (1, True)


def test_without_a_project_the_way_to_one_is_shown(command: Run, logged_in: FakeApi) -> None:
    command("context", "set-project", "")
    result = command("dataset", "list")
    assert (result.code, "set-project" in result.err) == (2, True)
    assert command("dataset", "list", "--context", "nowhere").code == 6


@pytest.mark.attack
def test_another_server_than_the_control_plane_gets_no_token(
    command: Run, logged_in: FakeApi
) -> None:
    profiles = Profiles()
    profiles.put(dataclasses.replace(profiles.get("here"), server=logged_in.gateway_address))
    assert command("project", "list").code != 0
    assert command("status").code != 0
    assert logged_in.calls == []


def test_a_fresh_code_is_asked_for_once_and_the_call_repeated(
    command: Run, logged_in: FakeApi, terminal: list[str]
) -> None:
    answers = [FreshMfaRequired("fresh"), user_pb2.User(name="users/dora")]
    logged_in.answers["UserService.CreateUser"] = lambda _: answers.pop(0)
    logged_in.answers["AuthService.VerifyTotp"] = auth_service_pb2.VerifyTotpResponse(token="new")
    terminal += ["a good password", "123 456"]
    done = command("user", "create", "dora")
    assert done.code == 0
    assert done.err.startswith("this needs a code of the last five minutes\n")
    first, verify, second = logged_in.calls
    assert (verify.request.token, verify.request.code) == ("old-token", "123456")
    assert (first.token, second.token) == ("old-token", "new")
    assert first.request == second.request
    assert Profiles().token(Profiles().get()) == "new"


def test_a_fresh_code_from_standard_input(command: Run, logged_in: FakeApi) -> None:
    answers = [FreshMfaRequired("fresh"), binding_pb2.Binding(name="bindings/b")]
    logged_in.answers["BindingService.CreateBinding"] = lambda _: answers.pop(0)
    logged_in.answers["AuthService.VerifyTotp"] = auth_service_pb2.VerifyTotpResponse(token="new")
    give = ("binding", "create", "--principal", "users/dora", "--role", "developer")
    result = command(*give, "--project", "demo", "--code-file", "-", stdin="654321\n")
    assert result.code == 0
    wanted = logged_in.calls[0].request.binding
    assert (wanted.principal, wanted.role, wanted.scope) == ("users/dora", "roles/developer", DEMO)


def test_the_second_refusal_is_final(command: Run, logged_in: FakeApi, terminal: list[str]) -> None:
    logged_in.answers["UserService.LockUser"] = FreshMfaRequired("fresh")
    logged_in.answers["AuthService.VerifyTotp"] = auth_service_pb2.VerifyTotpResponse(token="new")
    terminal += ["123456"]
    assert command("user", "lock", "dora").code == 4
    assert len(logged_in.named("UserService.LockUser")) == 2


def test_an_application_is_who_its_token_file_says(
    command: Run, logged_in: FakeApi, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = home / "token"
    file.write_text("svc-token\n")
    file.chmod(0o600)
    monkeypatch.setenv("APPLIANCE_TOKEN_FILE", str(file))
    logged_in.answers["AuthService.WhoAmI"] = auth_service_pb2.WhoAmIResponse(principal="x")
    may = auth_service_pb2.ListMyPermissionsResponse()
    logged_in.answers["AuthService.ListMyPermissions"] = may
    assert command("whoami").code == 0
    assert logged_in.calls[0].token == "svc-token"
    file.chmod(0o644)
    assert command("whoami").code == 1


def test_a_repeated_command_repeats_its_request(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["ProjectService.CreateProject"] = project_pb2.Project(name="projects/p")
    for extra in (("--request-id", ID), ()):
        command("project", "create", "p", *extra)
    first, second = logged_in.calls
    assert first.request.request_id == ID
    assert second.request.request_id not in ("", ID)


def test_a_request_id_is_a_uuid_of_what_can_be_repeated(command: Run, logged_in: FakeApi) -> None:
    assert command("project", "create", "p", "--request-id", "seven").code == 2
    assert command("node", "create-join-token", "n2", "--request-id", ID).code == 2
    assert logged_in.calls == []


def test_first_login_enrols_and_shows_everything_once(
    command: Run, logged_in: FakeApi, terminal: list[str]
) -> None:
    uri = "otpauth://totp/appliance:alice?secret=ABCDEFGH"
    logged_in.answers |= {
        "AuthService.Login": auth_service_pb2.LoginResponse(token="half", next_step=3),
        "AuthService.EnrollTotp": auth_service_pb2.EnrollTotpResponse(provisioning_uri=uri),
        "AuthService.VerifyTotp": auth_service_pb2.VerifyTotpResponse(
            token="whole", recovery_codes=["aaaa-bbbb", "cccc-dddd"]
        ),
    }
    terminal += ["pass phrase", "123456"]
    result = command("login", "--user", "alice")
    assert (result.code, result.out) == (0, "aaaa-bbbb\ncccc-dddd\n")
    assert uri in result.err
    assert "█" in result.err
    assert Profiles().token(Profiles().get()) == "whole"


def test_login_without_a_terminal(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers |= {
        "AuthService.Login": auth_service_pb2.LoginResponse(token="half", next_step=2),
        "AuthService.VerifyTotp": auth_service_pb2.VerifyTotpResponse(token="whole"),
    }
    result = command(
        *("login", "--password-file", "-", "--code-file", "-", "-o", "json"),
        stdin="pass phrase\n123456\n",
    )
    assert result.code == 0
    assert set(json.loads(result.out)) == {"token_expire_time", "recovery_codes"}
    login, verify = logged_in.calls
    assert (login.request.user, login.request.password) == ("alice", "pass phrase")
    assert (verify.request.token, verify.request.code) == ("half", "123456")
    assert command("login").code == 2
    assert command("login", "--password-file", "-", stdin="pass phrase\n").code == 4


def test_login_with_a_recovery_code(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers |= {
        "AuthService.Login": auth_service_pb2.LoginResponse(token="half", next_step=2),
        "AuthService.VerifyTotp": auth_service_pb2.VerifyTotpResponse(token="whole"),
    }
    files = ("--password-file", "-", "--recovery-code-file", "-")
    assert command("login", *files, stdin="pass\naaaa-bbbb\n").code == 0
    assert logged_in.calls[1].request.recovery_code == "aaaa-bbbb"


def test_a_mistyped_code_may_be_typed_again(
    command: Run, logged_in: FakeApi, terminal: list[str]
) -> None:
    answers = [Unauthenticated("wrong code"), auth_service_pb2.VerifyTotpResponse(token="whole")]
    logged_in.answers |= {
        "AuthService.Login": auth_service_pb2.LoginResponse(token="half", next_step=2),
        "AuthService.VerifyTotp": lambda _: answers.pop(0),
    }
    terminal += ["pass phrase", "111111", "222222"]
    assert command("login").code == 0


def test_a_wrong_password_keeps_the_old_session(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["AuthService.Login"] = Unauthenticated("wrong user or password")
    assert command("login", "--password-file", "-", stdin="wrong\n").code == 4
    assert Profiles().token(Profiles().get()) == "old-token"


def test_logout_forgets_the_session_even_when_it_has_ended(
    command: Run, logged_in: FakeApi
) -> None:
    logged_in.answers["AuthService.Logout"] = Unauthenticated("ended")
    assert command("logout").code == 0
    assert Profiles().token(Profiles().get()) == ""


def test_status_says_more_to_who_is_logged_in(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["SystemService.GetSystem"] = system_service_pb2.GetSystemResponse(
        gateway_address="g:1"
    )
    expirations = system_service_pb2.ListExpirationsResponse()
    logged_in.answers["SystemService.ListExpirations"] = expirations
    found = json.loads(command("status", "-o", "json").out)
    assert found["gateway_address"] == "g:1"
    assert "ends" not in found
    end = timestamp_pb2.Timestamp(seconds=1_800_000_000)
    expirations.expirations.add(what="CA certificate", expire_time=end, advice="make another")
    found = json.loads(command("status", "-o", "json").out)
    end = {"what": "CA certificate", "expire_time": "2027-01-15T08:00:00Z"}
    assert found["ends"] == [{**end, "advice": "make another"}]
    shown = command("status").out.splitlines()
    assert shown[-1].split()[:2] == ["CA", "certificate"]
    # Who may not see that sees the rest, also of a server that does not know the call.
    for error in (Denied("no"), UnknownMethod("older")):
        logged_in.answers["SystemService.ListExpirations"] = error
        assert "ends" not in json.loads(command("status", "-o", "json").out)
    Profiles().forget_token(Profiles().get())
    found = json.loads(command("status", "-o", "json").out)
    assert found == {"server": logged_in.address, "serving": True}


@pytest.mark.parametrize(
    ("noun", "method", "answer"),
    [
        (
            ("service-account", "create-token", "app"),
            "ServiceAccountService.CreateToken",
            service_account_service_pb2.CreateTokenResponse(
                token="shown-once", metadata=service_account_pb2.Token(id="t1")
            ),
        ),
        (
            ("node", "create-join-token", "n2"),
            "NodeService.CreateJoinToken",
            node_service_pb2.CreateJoinTokenResponse(token="shown-once", ca_fingerprint="ab"),
        ),
        (
            ("gateway", "create-join-token", "g2", "--host", "llm.example"),
            "GatewayService.CreateGatewayJoinToken",
            gateway_service_pb2.CreateGatewayJoinTokenResponse(token="shown-once"),
        ),
    ],
)
def test_a_secret_goes_to_a_private_file_or_to_stdout(
    command: Run, logged_in: FakeApi, home: Path, noun: tuple[str, ...], method: str, answer: Any
) -> None:
    logged_in.answers[method] = answer
    assert json.loads(command(*noun, "-o", "json").out)["token"] == "shown-once"
    file = home / "secret"
    result = command(*noun, "--out", str(file))
    assert result.code == 0
    assert "shown-once" not in result.out + result.err
    assert file.read_text() == "shown-once\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_eviction_is_asked_for(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["NodeService.EvictNode"] = node_pb2.Node(name="nodes/n1")
    assert command("node", "evict", "n1").code == 3
    assert logged_in.calls == []
    assert command("node", "evict", "n1", "--yes").code == 0
    gateway = gateway_service_pb2.Gateway(name="gateways/g1", state=2, hosts=["a.example", "::1"])
    logged_in.answers["GatewayService.EvictGateway"] = gateway
    assert command("gateway", "evict", "g1").code == 3
    shown = command("gateway", "evict", "g1", "--yes").out.splitlines()[1]
    assert shown.split()[:5] == ["g1", "EVICTED", "no", "a.example,", "::1"]
    assert logged_in.calls[-1].request.name == "gateways/g1"


def test_gateways_are_listed(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["GatewayService.ListGateways"] = gateway_service_pb2.ListGatewaysResponse(
        gateways=[gateway_service_pb2.Gateway(name="gateways/g1", state=1, hosts=["a.example"])]
    )
    (line,) = command("gateway", "list").out.splitlines()[1:]
    assert line.split() == ["g1", "READY", "no", "a.example"]


def test_one_version_or_the_whole(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["DatasetService.GetDataset"] = dataset_pb2.Dataset()
    logged_in.answers["DatasetService.GetDatasetVersion"] = dataset_pb2.DatasetVersion()
    for name in ("docs", f"{DEMO}/datasets/docs", "docs/2", f"{DEMO}/datasets/docs/versions/2"):
        assert command("dataset", "get", name).code == 0
    assert [(call.name.partition(".")[2], call.request.name) for call in logged_in.calls] == [
        ("GetDataset", f"{DEMO}/datasets/docs"),
        ("GetDataset", f"{DEMO}/datasets/docs"),
        ("GetDatasetVersion", f"{DEMO}/datasets/docs/versions/2"),
        ("GetDatasetVersion", f"{DEMO}/datasets/docs/versions/2"),
    ]


TRAIN = [
    "job",
    "train",
    "one",
    "--dataset",
    "tokens/1",
    "--output-model",
    "small",
    "--layers",
    "2",
    "--hidden-size",
    "64",
    "--intermediate-size",
    "128",
    "--attention-heads",
    "4",
    "--key-value-heads",
    "2",
    "--context-length",
    "64",
    "--steps",
    "5",
    "--batch-size",
    "4",
    "--sequence-length",
    "32",
    "--tie-embeddings",
]


def test_a_job_is_submitted_with_its_spec(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["JobService.CreateJob"] = job("QUEUED")
    result = command(*TRAIN, "--mesh", "data=2,tensor=2", "--data", "2")
    assert result.code == 0
    request = logged_in.calls[0].request
    assert (request.parent, request.job_id) == (DEMO, "one")
    spec = request.job.train
    assert spec.dataset == f"{DEMO}/datasets/tokens/versions/1"
    assert spec.output_model == f"{DEMO}/models/small"
    assert spec.architecture.layers == 2
    assert spec.architecture.tie_embeddings
    assert (spec.mesh.data, spec.mesh.tensor, spec.mesh.pipeline) == (2, 2, 0)
    assert command(*TRAIN, "--mesh", "data=2", "--data", "4").code == 2


def test_a_shape_is_whole_or_that_of_a_checkpoint(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["JobService.CreateJob"] = job("QUEUED")
    shape = TRAIN.index("--layers"), TRAIN.index("--steps")
    rest = [*TRAIN[: shape[0]], *TRAIN[shape[1] : -1]]
    result = command(*rest, "--from-checkpoint", "first/e1-step-50")
    assert result.code == 0, result.err
    spec = logged_in.calls[0].request.job.train
    assert spec.from_checkpoint == f"{DEMO}/jobs/first/checkpoints/e1-step-50"
    assert not spec.HasField("architecture")
    result = command(*rest)
    assert (result.code, "--layers, --hidden-size" in result.err) == (2, True)
    result = command(*rest, "--from-checkpoint", "first/e1-step-50", "--layers", "2")
    assert (result.code, "without any of it" in " ".join(result.err.split())) == (2, True)
    result = command(*rest, "--from-checkpoint", "e1-step-50")
    assert (result.code, "write JOB/CHECKPOINT" in result.err) == (1, True)


def test_checkpoints_are_listed_shown_and_deleted(command: Run, logged_in: FakeApi) -> None:
    name = f"{DEMO}/jobs/one/checkpoints/e2-step-50"
    made = checkpoint_pb2.Checkpoint(name=name, step=50, epoch=2, size_bytes=7, state=1)
    answer = checkpoint_service_pb2.ListCheckpointsResponse(checkpoints=[made])
    logged_in.answers["CheckpointService.ListCheckpoints"] = answer
    logged_in.answers["CheckpointService.GetCheckpoint"] = made
    logged_in.answers["CheckpointService.DeleteCheckpoint"] = made
    shown = command("checkpoint", "list", "one")
    assert [re.split(" {2,}", line)[:5] for line in shown.out.splitlines()] == [
        ["CHECKPOINT", "STATE", "STEP", "EPOCH", "SIZE"],
        ["e2-step-50", "COMPLETE", "50", "2", "7 B"],
    ]
    for text in ("one/e2-step-50", "one/checkpoints/e2-step-50", name):
        assert command("checkpoint", "get", text).code == 0
        assert command("checkpoint", "delete", text).code == 0
    assert logged_in.calls[0].request.parent == f"{DEMO}/jobs/one"
    assert {call.request.name for call in logged_in.calls[1:]} == {name}


def test_waiting_ends_with_the_job(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["JobService.CreateJob"] = job("QUEUED")
    progress = job_pb2.Progress(step=3, total=5, metrics={"loss": 2.5})
    running = job("RUNNING", progress=progress)
    logged_in.answers["JobService.WatchJob"] = [running, running, job("SUCCEEDED")]
    result = command(*TRAIN, "--wait", "-o", "json")
    assert (result.code, json.loads(result.out)["state"]) == (0, "STATE_SUCCEEDED")
    assert result.err.splitlines() == ["one  RUNNING  3/5  loss 2.5", "one  SUCCEEDED"]


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED"])
def test_waiting_for_a_job_that_fails_is_1(command: Run, logged_in: FakeApi, state: str) -> None:
    logged_in.answers["JobService.CreateJob"] = job("QUEUED")
    logged_in.answers["JobService.WatchJob"] = [job(state, state_reason="disk full")]
    result = command(*TRAIN, "--wait", "-o", "json")
    assert (result.code, json.loads(result.out)["state"]) == (1, f"STATE_{state}")
    assert "disk full" in result.err
    assert command("job", "watch", "one").code == 1


def test_nodes_say_what_they_run_and_what_they_lack(command: Run, logged_in: FakeApi) -> None:
    reason = "torch is not installed: install the extra node-cpu"
    kinds = {"prepare": "", "train": reason, "evaluate": reason, "replica": "vllm is not installed"}
    nodes = [
        node_pb2.Node(
            name=f"nodes/n{number}",
            capabilities=[
                node_pb2.Capability(kind=kind, available=not why, reason=why)
                for kind, why in said.items()
            ],
        )
        for number, said in enumerate(
            ({}, kinds, dict.fromkeys(kinds, ""), dict.fromkeys(kinds, reason))
        )
    ]
    logged_in.answers["NodeService.ListNodes"] = node_service_pb2.ListNodesResponse(nodes=nodes)
    heading, *rows = command("node", "list").out.splitlines()
    start = heading.index("RUNS")
    assert [[word.strip() for word in row[start:].split("  ") if word] for row in rows] == [
        ["everything"],
        ["prepare", f"{reason}; vllm is not installed"],
        ["everything"],
        ["nothing", reason],
    ]
    logged_in.answers["NodeService.GetNode"] = nodes[1]
    shown = command("node", "get", "n1").out
    lines = [re.split(" {2,}", line.strip()) for line in shown.splitlines()]
    at = lines.index(["Capabilities:"])
    assert lines[at + 1 : at + 3] == [["KIND", "AVAILABLE", "REASON"], ["prepare", "yes"]]
    assert lines[at + 3] == ["train", "no", reason]


def test_a_job_is_resumed_on_another_mesh_and_followed(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["JobService.ResumeJob"] = job("QUEUED", checkpoint_step=50)
    logged_in.answers["JobService.WatchJob"] = [job("SUCCEEDED")]
    shown = command("job", "resume", "one", "--mesh", "data=2,tensor=2", "--wait")
    assert shown.code == 0, shown.err
    request = logged_in.calls[0].request
    assert (request.name, request.mesh.data, request.mesh.tensor) == (f"{DEMO}/jobs/one", 2, 2)
    assert command("job", "resume", "one").code == 0
    assert not logged_in.calls[-1].request.HasField("mesh")


def test_a_job_is_paused_and_followed_until_it_is(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["JobService.PauseJob"] = job("PAUSING")
    assert command("job", "pause", "one").code == 0
    assert not logged_in.calls[-1].request.HasField("grace_seconds")
    saved = "paused by users/alice: saved the checkpoint of step 5"
    logged_in.answers["JobService.WatchJob"] = [
        job("PAUSING"),
        job("PAUSED", state_reason=saved),
        job("QUEUED"),
    ]
    shown = command("job", "pause", "one", "--grace", "1.5m", "--wait")
    assert (shown.code, shown.err.count(saved)) == (0, 1)
    assert "PAUSED" in shown.out
    assert logged_in.calls[-2].request.grace_seconds == 90
    # A zero is a zero, and half a second is no zero.
    for typed, sent in (("0", 0), ("0.5s", 1)):
        command("job", "pause", "one", "--grace", typed)
        request = logged_in.calls[-1].request
        assert (request.HasField("grace_seconds"), request.grace_seconds) == (True, sent)
    logged_in.answers["JobService.WatchJob"] = [job("FAILED", state_reason="it broke")]
    shown = command("job", "pause", "one", "--wait")
    assert (shown.code, shown.err.splitlines()[-1]) == (
        1,
        f"error: {DEMO}/jobs/one failed: it broke",
    )


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("wait", job_pb2.OnLost(wait=True)),
        ("90s", job_pb2.OnLost(replace_after_seconds=90)),
        ("0", job_pb2.OnLost(replace_after_seconds=0)),
        (None, None),
    ],
)
def test_a_job_says_how_long_it_waits_for_a_silent_node(
    command: Run, logged_in: FakeApi, tmp_path: Path, typed: str | None, sent: Any
) -> None:
    logged_in.answers["JobService.CreateJob"] = job("QUEUED")
    more = [] if typed is None else ["--on-lost", typed]
    words = ["--model", "m/1", "--output-model", "s", "--scheme", "w8a8-int8"]
    shown = command("job", "quantize", "one", *words, *more)
    assert shown.code == 0, shown.err
    asked = logged_in.calls[-1].request.job
    assert asked.HasField("on_lost") is (sent is not None)
    assert sent is None or asked.on_lost == sent
    if sent is not None:
        document = {"quantize": {"model": "m/1"}, "on_lost": json_format.MessageToDict(sent)}
        (tmp_path / "job.json").write_text(json.dumps(document))
        command("job", "create", "one", "-f", str(tmp_path / "job.json"))
        assert logged_in.calls[-1].request.job.on_lost == sent


def test_a_time_that_is_none_is_refused(command: Run, logged_in: FakeApi) -> None:
    words = ["--model", "m/1", "--output-model", "s", "--scheme", "w8a8-int8"]
    shown = command("job", "quantize", "one", *words, "--on-lost", "never")
    assert shown.code == 2
    assert "'never' is no duration: write 90s, 15m or 2h" in shown.err


@pytest.fixture
def no_lines(logged_in: FakeApi) -> None:
    """No node keeps the output of the job."""
    logged_in.answers["JobService.ReadJobLogs"] = []


def job_logs(*nodes: dict[str, Any], **fields: Any) -> Any:
    entries = [job_log_pb2.NodeLog(**node) for node in nodes]
    return job_log_pb2.JobLogs(name=f"{DEMO}/jobs/one", nodes=entries, **fields)


CAME = timestamp_pb2.Timestamp(seconds=1_800_000_000)
AT = "2027-01-15 08:00:00 UTC"


def test_whoever_may_read_the_last_output_is_told_how(command: Run, logged_in: FakeApi) -> None:
    hint = "hint: `appliance job logs {}` prints the last output of its ranks\n"
    for has_logs in (True, False):
        failed = job("FAILED", state_reason="rank 1 crashed with KeyError", has_logs=has_logs)
        logged_in.answers["JobService.WatchJob"] = [failed]
        logged_in.answers["JobService.GetJob"] = failed
        watched = command("job", "watch", "one")
        shown = command("job", "get", "one", "-o", "json")
        assert (watched.code, shown.code) == (1, 0)
        expected = hint.format("one") if has_logs else ""
        said = f"error: {DEMO}/jobs/one failed: rank 1 crashed with KeyError\n"
        assert (watched.err, shown.err) == (said + expected, expected)
    logged_in.answers["JobService.GetJob"] = job("FAILED", has_logs=True)
    elsewhere = command("job", "get", "one", "--project", "demo")
    assert elsewhere.err == hint.format(f"{DEMO}/jobs/one")


@pytest.mark.usefixtures("no_lines")
def test_the_last_output_of_one_node_is_all_that_is_on_stdout(
    command: Run, logged_in: FakeApi
) -> None:
    record = {"ts": "2027-01-15T07:59:59.000Z", "level": "ERROR", "logger": "a", "message": "bad"}
    text = "plain\n" + json.dumps(record | {"exception": "Traceback\nKeyError: 7"}) + "\n"
    node = {"node": "nodes/n1", "text": text, "cut": True, "receive_time": CAME}
    logged_in.answers["JobService.GetJobLogs"] = job_logs(node, epoch=3)
    shown = command("job", "logs", "one")
    assert logged_in.calls[0].request.name == f"{DEMO}/jobs/one"
    assert (shown.code, shown.err) == (
        0,
        f"==> nodes/n1, start 3, {AT}, only the last lines <==\n",
    )
    assert shown.out.splitlines() == [
        "plain",
        "2027-01-15T07:59:59.000Z ERROR bad",
        "    Traceback",
        "    KeyError: 7",
    ]
    raw = json.loads(command("job", "logs", "one", "-o", "json").out)
    assert (raw["nodes"][0]["text"], raw["nodes"][0]["cut"]) == (text, True)


@pytest.mark.usefixtures("no_lines")
def test_the_last_output_of_several_nodes_has_headings(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["JobService.GetJobLogs"] = job_logs(
        {"node": "nodes/n1", "text": "one\n", "receive_time": CAME},
        {"node": "nodes/n2"},
        {"node": "nodes/n3", "receive_time": CAME},
        epoch=1,
    )
    shown = command("job", "logs", "one")
    assert shown.out.splitlines() == [
        f"==> nodes/n1, start 1, {AT} <==",
        "one",
        "==> nodes/n2, start 1, nothing has come: it was not heard of again, or has not ended <==",
        f"==> nodes/n3, start 1, {AT}, its ranks wrote nothing <==",
    ]


@pytest.mark.usefixtures("no_lines")
@pytest.mark.attack
def test_what_one_node_wrote_is_not_taken_for_another_nodes(
    command: Run, logged_in: FakeApi
) -> None:
    forged = "one\n==> nodes/n2, start 1 <==\n\x1b ==> nodes/n2 <==\n\rlies\n"
    logged_in.answers["JobService.GetJobLogs"] = job_logs(
        {"node": "nodes/n1", "text": forged, "receive_time": CAME},
        {"node": "nodes/n2", "text": "two\n", "receive_time": CAME},
        epoch=1,
    )
    shown = command("job", "logs", "one").out.splitlines()
    assert [line for line in shown if line.startswith("==>")] == [
        f"==> nodes/{node}, start 1, {AT} <==" for node in ("n1", "n2")
    ]
    assert " ==> nodes/n2, start 1 <==" in shown


@pytest.mark.usefixtures("no_lines")
def test_no_output_says_why(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["JobService.GetJobLogs"] = job_logs(reason="the job has succeeded")
    shown = command("job", "logs", "one")
    assert (shown.code, shown.out, shown.err) == (
        0,
        "",
        f"{DEMO}/jobs/one: the job has succeeded\n",
    )


@pytest.mark.usefixtures("no_lines")
@pytest.mark.attack
def test_output_of_ranks_cannot_drive_a_terminal(command: Run, logged_in: FakeApi) -> None:
    record = {"ts": "\x1b[2J", "level": "\x9b1m", "logger": "", "message": "a\rb\u202ec"}
    text = "\x1b]0;owned\x07\ttab\n" + json.dumps(record) + "\n" + '{"ts": ' * 3000 + "\n"
    node = {"node": "nodes/\x1b[0m", "text": text, "receive_time": CAME}
    logged_in.answers["JobService.GetJobLogs"] = job_logs(node, reason="\x1b[1m")
    shown = command("job", "logs", "one")
    assert shown.code == 0
    bad = [c for c in shown.out + shown.err if not c.isprintable() and c not in "\n\t"]
    assert bad == []
    assert "]0;owned\N{REPLACEMENT CHARACTER}\ttab" in shown.out


def test_waiting_too_long_is_3_and_says_that_the_job_is_left(
    command: Run, logged_in: FakeApi
) -> None:
    logged_in.answers["JobService.CreateJob"] = job("QUEUED")

    def hang(_: Any) -> Any:
        yield job("RUNNING")
        threading.Event().wait(1.0)

    logged_in.answers["JobService.WatchJob"] = hang
    result = command(*TRAIN, "--wait", "--timeout", "0.3s")
    assert (result.code, "it is left as it is" in result.err) == (3, True)


def test_a_stream_that_breaks_is_opened_again(command: Run, logged_in: FakeApi) -> None:
    streams = [[job("RUNNING"), Unavailable("restarting")], [job("SUCCEEDED")]]
    logged_in.answers["JobService.WatchJob"] = lambda _: streams.pop(0)
    result = command("job", "watch", "one")
    assert (result.code, "SUCCEEDED" in result.out) == (0, True)


def test_a_job_from_a_file(command: Run, logged_in: FakeApi, home: Path) -> None:
    logged_in.answers["JobService.CreateJob"] = job("QUEUED")
    file = home / "job.yaml"
    file.write_text("evaluate:\n  model: a\n  dataset: b\n  max_tokens: 7\n")
    assert command("job", "create", "one", "-f", str(file), "--validate-only").code == 0
    request = logged_in.calls[0].request
    assert (request.job.evaluate.max_tokens, request.validate_only) == (7, True)
    text = '{"evaluate": {"max_tokens": 8}}'
    assert command("job", "create", "one", "-f", "-", stdin=text).code == 0
    assert logged_in.calls[1].request.job.evaluate.max_tokens == 8


@pytest.mark.parametrize("text", ["", "[]", "name: x", "train: {wrong: 1}", "a: b: c", "train: 3"])
def test_a_file_that_is_no_job_is_named(command: Run, logged_in: FakeApi, text: str) -> None:
    result = command("job", "create", "one", "-f", "-", stdin=text)
    assert (result.code, result.err.startswith("error: standard input")) == (1, True)
    assert logged_in.calls == []


def test_what_is_shown_of_a_job_makes_another(command: Run, logged_in: FakeApi) -> None:
    spec = job_pb2.TrainSpec(dataset="d", steps=7, learning_rate=0.5, mesh=job_pb2.Mesh(data=2))
    shown = job("FAILED")
    shown.ClearField("spec")
    shown.train.CopyFrom(spec)
    logged_in.answers["JobService.GetJob"] = shown
    logged_in.answers["JobService.CreateJob"] = job("QUEUED")
    text = command("job", "get", "one", "-o", "yaml").out
    assert command("job", "create", "two", "-f", "-", stdin=text).code == 0
    request = logged_in.calls[-1].request
    assert (request.job_id, request.job) == ("two", job_pb2.Job(train=spec))


PLAN = job_service_pb2.JobPlan(
    ranks=4,
    host_memory_bytes=3 << 30,
    device_memory_bytes=5 << 29,
    modules=["numpy", "torch"],
    nodes=[
        job_service_pb2.NodePlan(node="nodes/n1", ranks=4),
        job_service_pb2.NodePlan(node="nodes/n2", reason="all of its 2 devices are taken"),
    ],
)


def test_a_dry_run_shows_what_a_job_needs_and_makes_none(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["JobService.PlanJob"] = PLAN
    shown = command(*TRAIN, "--on-lost", "wait", "--dry-run")
    assert shown.code == 0, shown.err
    assert shown.out.splitlines() == [
        "ranks: 4",
        (
            "memory of each rank: 3.0 GiB set aside on its node, 2.5 GiB of it on a GPU where there"
            " is one"
        ),
        "Python modules: numpy, torch",
        "now: it would start",
        "",
        "NODE  RANKS NOW  WHY NOT",
        "n1    4",
        "n2    0          all of its 2 devices are taken",
    ]
    (call,) = logged_in.calls
    assert call.request.job.train.dataset
    assert call.request.job.on_lost.wait
    text = "quantize: {model: m}"
    found = json.loads(
        command("job", "create", "one", "-f", "-", "--dry-run", "-o", "json", stdin=text).out
    )
    assert (found["ranks"], found["nodes"][1]["ranks"]) == (4, 0)
    assert logged_in.calls[-1].request.job_id == "one"


def test_an_endpoint_is_waited_for(command: Run, logged_in: FakeApi) -> None:
    states = endpoint_pb2.Endpoint.State
    made = endpoint_pb2.Endpoint(name=f"{DEMO}/endpoints/chat", state=states.STATE_STARTING)
    ready = endpoint_pb2.Endpoint(name=made.name, state=states.STATE_READY)
    failed = endpoint_pb2.Endpoint(
        name=made.name, state=states.STATE_FAILED, state_reason="too little memory"
    )
    logged_in.answers["EndpointService.CreateEndpoint"] = made
    create = ("endpoint", "create", "chat", "--model", "m/1", "--replicas", "2", "--wait")
    logged_in.answers["EndpointService.WatchEndpoint"] = [made, ready]
    result = command(*create, "--cache-bytes", "5", "-o", "json")
    assert (result.code, json.loads(result.out)["state"]) == (0, "STATE_READY")
    request = logged_in.calls[0].request
    assert request.endpoint.model == f"{DEMO}/models/m/versions/1"
    assert (request.endpoint.replicas, request.endpoint.cache_bytes) == (2, 5)
    logged_in.answers["EndpointService.WatchEndpoint"] = [made, failed]
    result = command(*create)
    assert (result.code, "too little memory" in result.err) == (1, True)


def test_an_endpoint_is_updated_stopped_and_started(command: Run, logged_in: FakeApi) -> None:
    states, replicas = endpoint_pb2.Endpoint.State, endpoint_pb2.Replica.State
    name = f"{DEMO}/endpoints/chat"

    def endpoint(state: str, *, why: str = "", older: str = "") -> endpoint_pb2.Endpoint:
        made = endpoint_pb2.Endpoint(
            name=name, state=states.Value(f"STATE_{state}"), state_reason=why, generation=2
        )
        if older:
            made.replica_status.add(id="r0", generation=1, state=replicas.Value(f"STATE_{older}"))
        return made

    updating = endpoint("UPDATING", older="READY")
    logged_in.answers["EndpointService.UpdateEndpoint"] = updating
    logged_in.answers["EndpointService.WatchEndpoint"] = [updating, endpoint("READY")]
    update = ("endpoint", "update", "chat", "--model", "m/2", "--wait", "-o", "json")
    result = command(*update, "--replicas", "3", "--no-allow-downtime", "--etag", "e")
    assert (result.code, json.loads(result.out)["state"]) == (0, "STATE_READY")
    (call,) = logged_in.named("EndpointService.UpdateEndpoint")
    assert list(call.request.update_mask.paths) == ["allow_downtime", "model", "replicas"]
    assert call.request.endpoint == endpoint_pb2.Endpoint(
        name=name, model=f"{DEMO}/models/m/versions/2", replicas=3, etag="e"
    )
    why = "the new version does not start; go back"
    for last, code in (
        (endpoint("DEGRADED", why=why, older="READY"), 1),
        (endpoint("FAILED", why=why), 1),
        (endpoint("STOPPED"), 0),
    ):
        logged_in.answers["EndpointService.WatchEndpoint"] = [updating, last]
        result = command(*update)
        assert (result.code, why in result.err) == (code, bool(code))
    assert "say what to change: --model" in command("endpoint", "update", "chat").err
    for verb, end in (("Stop", "STOPPED"), ("Start", "READY")):
        logged_in.answers[f"EndpointService.{verb}Endpoint"] = endpoint("STOPPING")
        logged_in.answers["EndpointService.WatchEndpoint"] = [endpoint("STARTING"), endpoint(end)]
        result = command("endpoint", verb.lower(), "chat", "--wait", "-o", "json")
        assert (result.code, json.loads(result.out)["state"]) == (0, f"STATE_{end}")


def test_an_endpoint_is_described_with_its_replicas(command: Run, logged_in: FakeApi) -> None:
    made = endpoint_pb2.Endpoint(
        name=f"{DEMO}/endpoints/chat", state="STATE_UPDATING", state_reason="r1 starts"
    )
    made.replica_status.add(
        id="r0",
        node="nodes/n1",
        state="STATE_READY",
        generation=1,
        model=f"{DEMO}/models/m/versions/1",
        restarts=4,
    )
    logged_in.answers["EndpointService.GetEndpoint"] = made
    said = command("endpoint", "describe", "chat").out
    assert "r1 starts" in said
    (row,) = [line.split() for line in said.splitlines() if line.startswith("r0")]
    assert row == ["r0", "READY", "n1", "4", "1", "m/1"]
    shown = json.loads(command("endpoint", "describe", "chat", "-o", "json").out)
    assert shown["replica_status"][0]["restarts"] == 4


def test_an_endpoint_that_is_deleted_goes_when_its_answers_have_ended(
    command: Run, logged_in: FakeApi
) -> None:
    gone = endpoint_service_pb2.DeleteEndpointResponse()
    logged_in.answers["EndpointService.DeleteEndpoint"] = gone
    shown = command("endpoint", "delete", "e1")
    assert shown.code == 0
    assert "goes when its answers have ended" in shown.err
    assert "`appliance endpoint get e1`" in shown.err
    assert "Deleted: no" in shown.out


def test_a_deleted_endpoint_is_waited_for_until_it_is_gone(
    command: Run, logged_in: FakeApi
) -> None:
    states = endpoint_pb2.Endpoint.State
    stopping = endpoint_pb2.Endpoint(name=f"{DEMO}/endpoints/e1", state=states.STATE_STOPPING)
    logged_in.answers["EndpointService.DeleteEndpoint"] = (
        endpoint_service_pb2.DeleteEndpointResponse()
    )
    logged_in.answers["EndpointService.WatchEndpoint"] = [stopping, NotFound("gone")]
    result = command("endpoint", "delete", "e1", "--wait", "-o", "json")
    assert json.loads(result.out) == {"name": f"{DEMO}/endpoints/e1", "deleted": True}


def test_a_question_is_answered_by_the_gateway(
    command: Run, logged_in: FakeApi, home: Path
) -> None:
    logged_in.answers["SystemService.GetSystem"] = system_service_pb2.GetSystemResponse(
        gateway_address=logged_in.gateway_address
    )
    logged_in.answers["InferenceService.Generate"] = [
        inference_service_pb2.GenerateResponse(text="It is "),
        inference_service_pb2.GenerateResponse(
            text="\x1b[2Jgood.",
            finish_reason=generation_pb2.FINISH_REASON_STOP,
            totals=inference_service_pb2.Totals(completion_tokens=2),
        ),
    ]
    result = command("ask", "chat", "How?", "--system", "Be brief", "--temperature", "0")
    # Not a terminal: the text as it is.
    assert (result.code, result.out) == (0, "It is \x1b[2Jgood.\n")
    request = logged_in.named("InferenceService.Generate")[0].request
    assert request.endpoint == f"{DEMO}/endpoints/chat"
    assert [(m.role, m.content) for m in request.chat.messages] == [
        ("system", "Be brief"),
        ("user", "How?"),
    ]
    token = home / "token"
    token.write_text("svc-token")
    token.chmod(0o600)
    raw = command(
        *("ask", "chat", "--raw", "--token-file", str(token), "-o", "json"), stdin="Once upon"
    )
    assert json.loads(raw.out)["finish_reason"] == "FINISH_REASON_STOP"
    last = logged_in.named("InferenceService.Generate")[1]
    assert (last.token, last.request.prompt) == ("svc-token", "Once upon")
    assert command("ask", "chat", "x", "--raw", "--system", "y").code == 2


def test_a_model_without_a_chat_template_is_asked_with_raw(
    command: Run, logged_in: FakeApi
) -> None:
    logged_in.answers |= {
        "SystemService.GetSystem": system_service_pb2.GetSystemResponse(
            gateway_address=logged_in.gateway_address
        ),
        "InferenceService.Generate": InvalidInput(
            "this model has no chat template: send a plain prompt instead",
            fields={"messages": "the model takes plain prompts only"},
        ),
    }
    result = command("ask", "chat", "How?")
    assert result.code == 1
    assert "hint: `appliance ask chat --raw` goes on from the text itself\n" in result.err


@pytest.mark.attack
def test_what_a_model_writes_cannot_steer_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    ask.write_safely("a\x1b[2J\n\tb\x07")
    assert capsys.readouterr().out == "a�[2J\n\tb�"


@pytest.mark.attack
def test_names_from_the_server_cannot_steer_a_terminal(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["ProjectService.ListProjects"] = project_service_pb2.ListProjectsResponse(
        projects=[project_pb2.Project(name="projects/p", description="\x1b]0;title\x07")]
    )
    assert "\x1b" not in command("project", "list").out
    logged_in.answers["ProjectService.GetProject"] = project_pb2.Project(description="\x1b[31m")
    assert "\x1b" not in command("project", "get", "p").out


def test_a_command_calls_only_what_it_says() -> None:
    session = CommandSession(Shared(methods=("ProjectService.GetProject",)))
    with pytest.raises(KeyError):
        session.call("ProjectService.CreateProject")


@pytest.mark.parametrize("noun", NOUNS)
def test_a_list_of_commands_says_whole_sentences(command: Run, noun: str) -> None:
    assert "...\n" not in command(noun, "--help").out.partition("Commands:")[2]
