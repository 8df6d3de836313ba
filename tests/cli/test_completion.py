"""What a shell offers: names from the server, contexts, paths, and nothing for strangers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.api.data.v1 import dataset_pb2, dataset_service_pb2
from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.api.projects.v1 import project_pb2, project_service_pb2
from appliance.cli import completing
from appliance.client.methods import find
from appliance.client.profiles import Profiles
from appliance.core.errors import Denied
from appliance.core.names import PATTERNS
from tests.fakes.control_api import FakeApi

PROGRAM = Path(sys.executable).with_name("appliance")
SCRIPT = """
source <({program} completion bash)
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_appliance_completion {program}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def there(logged_in: FakeApi) -> FakeApi:
    """An appliance with two jobs, two datasets of which one has versions, and two projects."""

    def versions(request: Any) -> Any:
        found = [
            dataset_pb2.DatasetVersion(name=f"{request.parent}/versions/{number}")
            for number in (12, 3)
        ]
        return dataset_service_pb2.ListDatasetVersionsResponse(versions=found)

    def jobs(request: Any) -> Any:
        found = [job_pb2.Job(name=f"{request.parent}/jobs/{each}") for each in ("first", "second")]
        return job_service_pb2.ListJobsResponse(jobs=found)

    logged_in.answers |= {
        "JobService.ListJobs": jobs,
        "DatasetService.ListDatasets": dataset_service_pb2.ListDatasetsResponse(
            datasets=[
                dataset_pb2.Dataset(name=f"projects/demo/datasets/{each}")
                for each in ("docs", "news")
            ]
        ),
        "DatasetService.ListDatasetVersions": versions,
        "ProjectService.ListProjects": project_service_pb2.ListProjectsResponse(
            projects=[project_pb2.Project(name=f"projects/{each}") for each in ("demo", "other")]
        ),
        "UserService.ListUsers": Denied("no"),
    }
    return logged_in


def completed(words: str) -> list[str]:
    """What bash puts into COMPREPLY; fails when anything is said on stderr."""
    done = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", SCRIPT.format(program=PROGRAM, words=words)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("appliance job get ''", ["first", "second"]),
        ("appliance job get s", ["second"]),
        ("appliance job describe f", ["first"]),
        ("appliance job get --project ''", ["demo", "other"]),
        ("appliance dataset get ''", ["docs/", "news/"]),
        ("appliance dataset get d", ["docs/12", "docs/3"]),
        ("appliance dataset download news/1", ["news/12"]),
        ("appliance job prepare new --dataset docs/", ["docs/12", "docs/3"]),
        ("appliance context use h", ["here"]),
        ("appliance job list --context ''", ["here"]),
        ("appliance endpoint crea", ["create"]),
        ("appliance job list -o w", ["wide"]),
        # What is to be made has no name yet, and what may not be listed stays unknown.
        ("appliance dataset create ''", []),
        ("appliance job train ''", []),
        ("appliance user get ''", []),
        # A server that knows no such call.
        ("appliance model get ''", []),
    ],
)
@pytest.mark.usefixtures("there")
def test_bash_completes(words: str, expected: list[str]) -> None:
    assert completed(words) == expected


@pytest.mark.usefixtures("there")
def test_paths_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.md").touch()
    for words in ("appliance dataset upload docs t", "appliance job list --code-file t"):
        done = subprocess.run(
            [PROGRAM],
            env={
                **os.environ,
                "_APPLIANCE_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(len(words.split()) - 1),
            },
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        # Bash lists the files itself.
        assert done.stdout.split(",")[0] in {"file", "dir"}


@pytest.mark.attack
def test_nobody_is_asked_who_is_not_logged_in(there: FakeApi) -> None:
    profiles = Profiles()
    profiles.forget_token(profiles.get())
    assert completed("appliance job get ''") == []
    assert there.calls == []


def test_a_server_that_is_away_is_no_error_of_a_shell(there: FakeApi) -> None:
    profiles = Profiles()
    profile = profiles.get()
    gone = profile.__class__("gone", "127.0.0.1:1", profile.ca_pem, project="demo")
    profiles.put(gone)
    profiles.keep_token(gone, "token")
    assert completed("appliance job get ''") == []
    assert completed("appliance job get --context here ''") == ["first", "second"]
    assert there.calls


@pytest.mark.parametrize(
    ("shell", "check"), [("zsh", "zsh -n"), ("fish", "fish --no-execute"), ("bash", "bash -n")]
)
def test_each_shell_reads_its_script(tmp_path: Path, shell: str, check: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = subprocess.run(
        [PROGRAM, "completion", shell], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    (tmp_path / "script").write_text(script)
    subprocess.run([*check.split(), str(tmp_path / "script")], check=True, timeout=60)


def test_every_kind_that_is_completed_can_be_listed() -> None:
    assert set(completing.METAVARS.values()) <= set(completing.LISTS)


@pytest.mark.attack
@pytest.mark.parametrize("kind", completing.LISTS)
def test_nothing_is_asked_of_a_person_who_presses_tab(kind: str) -> None:
    """A call that needs a fresh code would ask for one, into the line that is being typed."""
    rpc, rows = completing.LISTS[kind]
    method = find(rpc)
    assert (method.rule.fresh_mfa, method.rule.reads) == (False, True)
    service, _, short = rpc.partition(".")
    file = method.request.DESCRIPTOR.file
    answer = file.services_by_name[service].methods_by_name[short].output_type
    assert "name" in answer.fields_by_name[rows].message_type.fields_by_name
    inside = kind == "serviceAccount" or kind in completing.PARENTS or PATTERNS[kind].count("{") > 1
    assert ("parent" in method.request.DESCRIPTOR.fields_by_name) == inside
