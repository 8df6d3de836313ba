"""What was meant by a word that does not exist."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.api.data.v1 import dataset_service_pb2
from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.api.serving.v1 import endpoint_pb2, endpoint_service_pb2
from appliance.api.system.v1 import system_service_pb2
from appliance.cli import suggesting, version
from appliance.client.profiles import Profiles
from appliance.core.errors import Denied, NotFound, Unauthenticated, Unavailable
from tests.fakes.command_line import Run
from tests.fakes.control_api import FakeApi

ONE = "projects/demo/jobs/one"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("endpont lst", "'endpoint'"),
        ("endpoint lst", "'list'"),
        ("jobs list", "'job'"),
        ("job trian", "'train'"),
        ("get jobs", "Did you mean `appliance job list`?"),
        ("get job one", "Did you mean `appliance job get`?"),
        ("describe nodes n1", "Did you mean `appliance node describe`?"),
        ("drain n1", "Did you mean `appliance node drain`?"),
        ("logs one", "Did you mean `appliance job logs`?"),
        ("list", "No such command 'list'."),
        ("job list --projct x", "'--project'"),
        ("job list -o jsn", "did you mean json?"),
        ("job quantize q --model m/1 --output-model n --scheme w8a8int8", "w8a8-int8"),
        ("context use heer", "Did you mean here?"),
        ("job list --context heer", "Did you mean here?"),
        ("completion bsh", "bash"),
    ],
)
@pytest.mark.usefixtures("logged_in")
def test_a_mistyped_word_gets_what_is_near(command: Run, words: str, meant: str) -> None:
    said = command(*words.split())
    assert said.code != 0
    assert meant in said.err


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who reads what is said on stderr."""
    monkeypatch.setattr(suggesting, "_person_reads", lambda: True)


def missing(name: str) -> NotFound:
    return NotFound(f"there is no {name}, or you hold no role there", name=name)


@pytest.mark.usefixtures("person")
def test_a_mistyped_name_gets_those_that_are_near(command: Run, logged_in: FakeApi) -> None:
    jobs = [job_pb2.Job(name=f"projects/demo/jobs/{each}") for each in ("first", "other")]
    logged_in.answers |= {
        "JobService.GetJob": missing("projects/demo/jobs/firts"),
        "JobService.ListJobs": job_service_pb2.ListJobsResponse(jobs=jobs),
    }
    said = command("job", "get", "firts").err
    hint = "did you mean first? `appliance job list --project demo` shows what there is"
    assert f"hint: {hint}\n" in said
    assert logged_in.named("JobService.ListJobs")[0].request.parent == "projects/demo"
    # Who may not list is told how, and no more.
    logged_in.answers["JobService.ListJobs"] = Denied("no")
    assert "did you mean" not in command("job", "get", "firts").err


@pytest.mark.usefixtures("person")
def test_a_mistyped_endpoint_that_is_asked_gets_those_that_are_near(
    command: Run, logged_in: FakeApi
) -> None:
    chat = endpoint_pb2.Endpoint(name="projects/demo/endpoints/chat")
    logged_in.answers |= {
        "SystemService.GetSystem": system_service_pb2.GetSystemResponse(
            gateway_address=logged_in.gateway_address
        ),
        "InferenceService.Generate": NotFound(
            "there is no endpoint that you may ask", endpoint="projects/demo/endpoints/chta"
        ),
        "EndpointService.ListEndpoints": endpoint_service_pb2.ListEndpointsResponse(
            endpoints=[chat]
        ),
    }
    hint = "did you mean chat? `appliance endpoint list --project demo` shows what there is"
    assert f"hint: {hint}\n" in command("ask", "chta", "How?").err


@pytest.mark.usefixtures("person")
def test_a_version_is_looked_for_among_those_of_its_dataset(
    command: Run, logged_in: FakeApi
) -> None:
    def versions(request: Any) -> Any:
        assert request.parent == "projects/demo/datasets/docs"
        return dataset_service_pb2.ListDatasetVersionsResponse(
            versions=[{"name": f"{request.parent}/versions/2"}]
        )

    logged_in.answers |= {
        "DatasetService.GetDatasetVersion": missing("projects/demo/datasets/docs/versions/22"),
        "DatasetService.ListDatasetVersions": versions,
    }
    said = command("dataset", "get", "docs/22").err
    assert "did you mean 2? `appliance dataset versions docs --project demo`" in said


def test_a_script_asks_nothing_more_of_the_server(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["JobService.GetJob"] = missing(ONE)
    said = command("job", "get", "one")
    assert "hint: `appliance job list --project demo` shows what there is\n" in said.err
    assert [call.name for call in logged_in.calls] == ["JobService.GetJob"]


def test_versions_of_both_sides(command: Run, logged_in: FakeApi) -> None:
    own = command("version", "-o", "json")
    assert "did not say its version" in own.err
    logged_in.answers["SystemService.GetSystem"] = system_service_pb2.GetSystemResponse(
        version="99.1.0"
    )
    said = command("version")
    assert [each.split() for each in said.out.splitlines()][1] == ["Server:", "99.1.0"]
    assert "the command is older than the server" in said.err
    for error in (Unauthenticated("your session has ended"), Unavailable("away")):
        logged_in.answers["SystemService.GetSystem"] = error
        said = command("version")
        assert (said.code, said.out.split()[0]) == (0, "Client:")
        assert error.message in said.err


def test_the_own_version_needs_no_login_and_no_context(command: Run, logged_in: FakeApi) -> None:
    profiles = Profiles()
    profiles.forget_token(profiles.get())
    said = command("version")
    assert (said.code, logged_in.calls) == (0, [])
    assert "`appliance login`" in said.err
    profiles.remove("here")
    said = command("version")
    assert said.code == 0
    assert "`appliance context add" in said.err


@pytest.mark.parametrize(
    ("client", "server", "word"),
    [
        ("0.2.0", "0.2.0", ""),
        ("0.2.0.dev0", "0.2.0", ""),
        ("0.2.0", "0.10.0", "older"),
        ("1.0.0", "0.10.0", "newer"),
    ],
)
def test_a_word_on_skew(client: str, server: str, word: str) -> None:
    assert word in version.skew(client, server)
    assert bool(version.skew(client, server)) == bool(word)
