"""What the SDK does around a call: again where that is right, never twice, as errors of ours."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from appliance.api.access.v1 import service_account_service_pb2 as account_rpc
from appliance.api.auth.v1 import auth_service_pb2
from appliance.api.data.v1 import dataset_pb2, dataset_service_pb2
from appliance.api.inference.v1 import generation_pb2
from appliance.api.inference.v1.inference_service_pb2 import GenerateResponse, Totals
from appliance.api.jobs.v1.job_pb2 import Job
from appliance.api.projects.v1 import project_pb2
from appliance.api.serving.v1.endpoint_pb2 import Endpoint
from appliance.api.system.v1.system_service_pb2 import GetSystemResponse
from appliance.client import (
    Appliance,
    AsyncAppliance,
    Exhausted,
    FailedPrecondition,
    InvalidInput,
    JobFailed,
    NotFound,
    Unauthenticated,
    Unavailable,
    Untrusted,
    WaitTimedOut,
)
from appliance.client.profiles import Profile, Profiles
from appliance.client.tries import Tries
from appliance.core.errors import ApplianceError
from tests.fakes.control_api import FakeApi
from tests.fakes.gang import ROOT
from tests.fakes.wire import authority

AWAY = Unavailable("the server is stopping")


@pytest.fixture
def client(api: FakeApi) -> Iterator[Appliance]:
    with Appliance(api.address, ca=api.ca_pem, token="token", project="p") as made:
        yield made


def then(*answers: Any) -> Callable[[Any], Any]:
    """One answer after the other, the last for ever."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def test_a_change_is_repeated_under_one_request_id(api: FakeApi, client: Appliance) -> None:
    made = dataset_pb2.Dataset(name="projects/p/datasets/docs")
    api.answers["DatasetService.CreateDataset"] = then(AWAY, Exhausted("slow", retry_after=0), made)
    assert client.datasets.create("docs", dataset={"description": "x"}) == made
    calls = api.named("DatasetService.CreateDataset")
    assert len(calls) == 3
    assert len({call.request.request_id for call in calls}) == 1
    assert len({call.metadata["x-request-id"] for call in calls}) == 1
    assert calls[0].request.request_id != ""
    assert calls[0].request.parent == "projects/p"
    client.datasets.create("docs", request_id="mine")
    assert api.calls[-1].request.request_id == "mine"


@pytest.mark.attack
def test_what_could_be_done_twice_is_not_repeated(api: FakeApi, client: Appliance) -> None:
    made = account_rpc.CreateTokenResponse(token="t")
    api.answers["ServiceAccountService.CreateToken"] = then(AWAY, made)
    with pytest.raises(Unavailable, match="stopping"):
        client.service_accounts.create_token("app")
    assert len(api.calls) == 1
    assert api.calls[0].request.name == "serviceAccounts/p--app"


@pytest.mark.parametrize(
    "error",
    [NotFound("no"), Untrusted("no"), Exhausted("no quota is left"), FailedPrecondition("no")],
)
def test_what_does_not_pass_by_itself_is_said_at_once(
    api: FakeApi, client: Appliance, error: ApplianceError
) -> None:
    api.answers["DatasetService.GetDataset"] = error
    with pytest.raises(type(error)):
        client.datasets.get("docs")
    assert len(api.calls) == 1


def test_a_call_ends_at_its_time_whatever_it_waits_for(api: FakeApi, client: Appliance) -> None:
    api.answers["DatasetService.GetDataset"] = Exhausted("later", retry_after=3600)
    with pytest.raises(Exhausted):
        client.datasets.get("docs", timeout=5)
    assert len(api.calls) == 1


def test_a_list_is_every_page(api: FakeApi, client: Appliance) -> None:
    def page(request: Any) -> dataset_service_pb2.ListDatasetsResponse:
        number = int(request.page_token or 0)
        return dataset_service_pb2.ListDatasetsResponse(
            datasets=[dataset_pb2.Dataset(description=str(number))],
            next_page_token=str(number + 1) if number < 2 else "",
        )

    api.answers["DatasetService.ListDatasets"] = page
    assert [each.description for each in client.datasets.list()] == ["0", "1", "2"]
    assert next(client.datasets.list(project="other")).description == "0"
    assert api.calls[-1].request.parent == "projects/other"


def test_names_are_whole_in_requests_and_in_what_they_hold(api: FakeApi, client: Appliance) -> None:
    api.answers["JobService.CreateJob"] = Job()
    spec = {"datasets": ["docs/1", "projects/q/datasets/d/versions/2"], "output_dataset": "tokens"}
    client.jobs.create("clean", job={"prepare": spec})
    prepare = api.calls[-1].request.job.prepare
    assert list(prepare.datasets) == [
        "projects/p/datasets/docs/versions/1",
        "projects/q/datasets/d/versions/2",
    ]
    assert prepare.output_dataset == "projects/p/datasets/tokens"
    api.answers["EndpointService.CreateEndpoint"] = Endpoint()
    client.endpoints.create("chat", endpoint=Endpoint(model="small/1"))
    assert api.calls[-1].request.endpoint.model == "projects/p/models/small/versions/1"


def test_what_is_wrong_is_said_before_anything_is_called(api: FakeApi, client: Appliance) -> None:
    with pytest.raises(InvalidInput, match="trian is no field of Job: did you mean train"):
        client.jobs.create("x", job={"trian": {}})
    with pytest.raises(InvalidInput, match="steps must be"):
        client.jobs.create("x", job={"train": {"steps": 1 << 70}})
    with pytest.raises(InvalidInput, match="job cannot hold its value"):
        client.jobs.create("x", job={"train": {"steps": "many"}})
    without = Appliance("[::1]:1", ca=api.ca_pem, token="t")
    with without, pytest.raises(InvalidInput, match="no project is chosen"):
        without.datasets.get("docs")
    assert api.calls == []


def test_a_change_names_its_fields_also_when_they_are_zero(api: FakeApi, client: Appliance) -> None:
    api.answers["ProjectService.UpdateProject"] = project_pb2.Project()
    client.projects.update({"name": "p", "allow_downloads": False})
    request = api.calls[-1].request
    assert (request.project.name, list(request.update_mask.paths)) == (
        "projects/p",
        ["allow_downloads"],
    )
    with pytest.raises(InvalidInput, match="name the fields that change"):
        client.projects.update(project_pb2.Project(name="projects/p"))


@pytest.mark.attack
def test_a_rotated_token_is_read_again_once(api: FakeApi, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text("old\n")
    with Appliance(api.address, ca=api.ca_pem, token_file=file) as client:
        api.answers["AuthService.WhoAmI"] = auth_service_pb2.WhoAmIResponse(principal="a")
        client.whoami()
        refused = Unauthenticated("the token has ended")
        # Also what is never repeated otherwise: nothing was done for it.
        api.answers["ServiceAccountService.CreateToken"] = refused
        with pytest.raises(Unauthenticated):
            client.service_accounts.create_token("serviceAccounts/p--app")
        (tmp_path / "next").touch(0o600)
        (tmp_path / "next").write_text("new\n")
        (tmp_path / "next").replace(file)
        api.calls.clear()
        with pytest.raises(Unauthenticated):
            client.service_accounts.create_token("serviceAccounts/p--app")
        assert [call.token for call in api.calls] == ["old", "new"]
        file.chmod(0o644)
        with pytest.raises(FailedPrecondition, match="other users"):
            client.service_accounts.create_token("serviceAccounts/p--app")


PIECES = [
    GenerateResponse(text="one "),
    GenerateResponse(
        text="two",
        finish_reason=generation_pb2.FINISH_REASON_STOP,
        totals=Totals(prompt_tokens=3, completion_tokens=2),
    ),
]


def served(api: FakeApi) -> None:
    api.answers["SystemService.GetSystem"] = GetSystemResponse(gateway_address=api.gateway_address)


def test_a_question_is_asked_again_before_its_first_piece_alone(
    api: FakeApi, client: Appliance
) -> None:
    served(api)
    api.answers["InferenceService.Generate"] = then([AWAY], PIECES)
    answer = client.ask("chat", "Who?", system="Be brief.", max_tokens=5)
    assert (str(answer), answer.finish_reason, answer.completion_tokens) == ("one two", "stop", 2)
    asked = api.named("InferenceService.Generate")
    assert len(asked) == 2
    assert asked[0].request.endpoint == "projects/p/endpoints/chat"
    assert [m.role for m in asked[0].request.chat.messages] == ["system", "user"]
    api.answers["InferenceService.Generate"] = then([PIECES[0], AWAY], PIECES)
    with pytest.raises(Unavailable):
        client.ask("chat", "Who?")
    assert len(api.named("InferenceService.Generate")) == 3


@pytest.mark.attack
def test_an_answer_is_not_begun_again_with_another_token(api: FakeApi, tmp_path: Path) -> None:
    def rotate(text: str) -> None:
        (tmp_path / "next").touch(0o600)
        (tmp_path / "next").write_text(text)
        (tmp_path / "next").replace(tmp_path / "token")

    served(api)
    rotate("old")
    refused = Unauthenticated("the token has ended")
    with Appliance(api.address, ca=api.ca_pem, token_file=tmp_path / "token") as client:
        api.answers["InferenceService.Generate"] = then([PIECES[0], refused], PIECES)
        pieces = client.stream("projects/p/endpoints/e", "Who?")
        said = [next(pieces).text]
        rotate("new")
        with pytest.raises(Unauthenticated):
            said += [piece.text for piece in pieces]
        assert said == ["one "]
        # Before its first piece nothing was said, and what it was asked with is read again.
        api.answers["InferenceService.Generate"] = then([refused], PIECES)
        client.ask("projects/p/endpoints/e", "Who?")
        rotate("newest")
        api.answers["InferenceService.Generate"] = then([refused], PIECES)
        assert str(client.ask("projects/p/endpoints/e", "Who?")) == "one two"


def test_who_only_asks_needs_the_gateway_alone(api: FakeApi) -> None:
    api.answers["InferenceService.Generate"] = PIECES
    with Appliance(gateway=api.gateway_address, ca=api.ca_pem, token="t") as client:
        pieces = list(client.stream("projects/p/endpoints/e", messages=[{"role": "user"}]))
        assert [piece.text for piece in pieces] == ["one ", "two"]
        with pytest.raises(FailedPrecondition, match="give `server` too"):
            client.whoami()
        with pytest.raises(InvalidInput, match="one of a question"):
            client.ask("projects/p/endpoints/e")


def test_a_wait_goes_on_through_cut_streams(api: FakeApi, client: Appliance) -> None:
    running, done = Job(state=Job.STATE_RUNNING), Job(state=Job.STATE_SUCCEEDED, uid="u")
    api.answers["JobService.WatchJob"] = then([AWAY], [running, AWAY], [running, done])
    seen: list[int] = []
    assert client.jobs.wait("j", progress=lambda job: seen.append(job.state)) == done
    assert seen == [running.state, running.state, done.state]


def test_how_a_wait_ends_when_it_does_not_go_well(api: FakeApi, client: Appliance) -> None:
    failed = Job(name="projects/p/jobs/j", state=Job.STATE_FAILED, state_reason="no space")
    api.answers["JobService.WatchJob"] = [failed]
    with pytest.raises(JobFailed, match="projects/p/jobs/j failed: no space"):
        client.jobs.wait("j")
    api.answers["JobService.WatchJob"] = lambda _: endless(Job(state=Job.STATE_RUNNING))
    with pytest.raises(WaitTimedOut, match=r"not done in 0\.2 s; it is left as it is"):
        client.jobs.wait("j", timeout=0.2)
    api.answers["EndpointService.WatchEndpoint"] = [
        Endpoint(state=Endpoint.STATE_FAILED, state_reason="no device")
    ]
    with pytest.raises(FailedPrecondition, match="is not served: no device"):
        client.endpoints.wait_until_ready("e")
    api.answers["EndpointService.WatchEndpoint"] = [NotFound("gone")]
    client.endpoints.wait_until_deleted("e")


def endless(first: Any) -> Iterator[Any]:
    yield first
    threading.Event().wait(5)


async def test_the_same_with_an_event_loop(api: FakeApi) -> None:
    served(api)
    api.answers["InferenceService.Generate"] = then([AWAY], PIECES)
    api.answers["JobService.WatchJob"] = then([AWAY], [Job(state=Job.STATE_SUCCEEDED)])
    api.answers["DatasetService.ListDatasets"] = then(
        AWAY,
        dataset_service_pb2.ListDatasetsResponse(datasets=[dataset_pb2.Dataset(description="1")]),
    )
    async with AsyncAppliance(api.address, ca=api.ca_pem, token="t", project="p") as client:
        answers = await asyncio.gather(*(client.ask("chat", "Who?") for _ in range(3)))
        assert {answer.text for answer in answers} == {"one two"}
        assert (await client.jobs.wait("j")).state == Job.STATE_SUCCEEDED
        assert [each.description async for each in client.datasets.list()] == ["1"]
        with pytest.raises(InvalidInput):
            await client.datasets.get("x y")


def test_threads_share_a_client(api: FakeApi, client: Appliance) -> None:
    api.answers["DatasetService.GetDataset"] = dataset_pb2.Dataset(description="u")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: client.datasets.get(f"d{i}").description, range(40)))
    assert found == ["u"] * 40


FORKS = """
import os, sys
from appliance.client import Appliance, ApplianceError, FailedPrecondition

address, ca = sys.argv[1:]
unused = Appliance(address, ca=ca, token="t", project="p")
used = Appliance(address, ca=ca, token="t", project="p")
if os.environ.get("CALLS"):
    used.datasets.get("d")
child = os.fork()
if child == 0:
    try:
        (used if os.environ.get("CALLS") else unused).datasets.get("d", timeout=10)
    except FailedPrecondition as error:
        print(error, flush=True)
        os._exit(3)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(("calls", "code"), [("1", 3), ("", 0)])
def test_a_fork_is_said_or_does_no_harm(
    api: FakeApi, tmp_path: Path, calls: str, code: int
) -> None:
    api.answers["DatasetService.GetDataset"] = dataset_pb2.Dataset()
    (tmp_path / "ca.pem").write_bytes(api.ca_pem)
    done = subprocess.run(
        [sys.executable, "-c", FORKS, api.address, str(tmp_path / "ca.pem")],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "CALLS": calls},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert ("make a client in the new process" in done.stdout) == bool(calls)


def test_a_closed_client_says_so(api: FakeApi, client: Appliance) -> None:
    client.close()
    with pytest.raises(FailedPrecondition, match="was closed"):
        client.datasets.get("d")


@pytest.mark.attack
def test_no_token_is_shown(client: Appliance, api: FakeApi) -> None:
    with Appliance(api.address, ca=api.ca_pem, token="SECRET-TOKEN") as made:
        shown = repr(made) + repr(vars(made)) + repr(made._calls.target) + str(vars(made._calls))
    assert "SECRET-TOKEN" not in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"server": "::1:7443", "token": "t"}, "stands in brackets"),
        ({"server": "x y:1", "token": "t"}, "is no HOST:PORT"),
        ({"server": "h:0", "token": "t"}, "port from 1 to 65535"),
        ({"server": "h:1"}, "give the file of a token"),
        ({"server": "h:1", "token": "t", "token_file": "f"}, "not both"),
        ({"server": "h:1", "token": "t", "ca": b"x"}, "no PEM certificate"),
        ({"server": "h:1", "token": "t", "ca": "nosuch.pem"}, "cannot be read"),
        ({"token": "t"}, "write HOST:PORT"),
    ],
)
def test_what_it_is_given_is_checked(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        Appliance(**{"ca": authority().certificate_pem, **arguments})


def test_a_context_and_the_environment(
    api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    api.answers["DatasetService.GetDataset"] = dataset_pb2.Dataset()
    profile = Profile("here", api.address, api.ca_pem.decode(), project="demo")
    Profiles().put(profile)
    with Appliance.from_context() as client:
        with pytest.raises(FailedPrecondition, match="nobody is logged in"):
            client.datasets.get("d")
        Profiles().keep_token(profile, "session")
        client.datasets.get("d")
    assert (api.calls[-1].token, api.calls[-1].request.name) == (
        "session",
        "projects/demo/datasets/d",
    )
    with pytest.raises(NotFound):
        Appliance.from_context("nosuch")
    token, ca = tmp_path / "token", tmp_path / "ca.pem"
    token.touch(0o600)
    token.write_text("app")
    ca.write_bytes(api.ca_pem)
    there = {
        "APPLIANCE_SERVER": api.address,
        "APPLIANCE_CA_FILE": str(ca),
        "APPLIANCE_TOKEN_FILE": str(token),
        "APPLIANCE_PROJECT": "q",
    }
    with Appliance.from_environment(there) as client:
        client.datasets.get("d")
    assert (api.calls[-1].token, api.calls[-1].request.name) == ("app", "projects/q/datasets/d")
    with Appliance.from_environment({"APPLIANCE_TOKEN_FILE": str(token)}) as client:
        client.datasets.get("d")
    assert (api.calls[-1].token, api.calls[-1].request.name) == ("app", "projects/demo/datasets/d")
    del there["APPLIANCE_CA_FILE"]
    with pytest.raises(FailedPrecondition, match="APPLIANCE_CA_FILE"):
        Appliance.from_environment(there)


def test_pauses_are_random_grow_and_end() -> None:
    now = 0.0
    tries = Tries(None, repeatable=True, patience=60, clock=lambda: now)
    pauses = []
    while now < 50:
        pauses.append(tries.pause(AWAY, lambda: False))
        now += 5.0
    now += 10
    with pytest.raises(Unavailable):
        tries.pause(AWAY, lambda: False)
    assert all(0 <= pause <= 5 for pause in pauses)
    tries.answered(whole=True)
    assert tries.pause(AWAY, lambda: False) <= 0.2
    tries.answered(whole=False)
    with pytest.raises(Unavailable):
        tries.pause(AWAY, lambda: False)
