"""Resource names: parse and format are inverse, everything outside the table is refused."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core import names
from appliance.core.errors import InvalidInput
from appliance.core.names import PATTERNS, Name, check_id

PROTO = Path(__file__).parents[2] / "proto"
IDS = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
NUMBERS = st.integers(1, 999_999_999).map(str)


def example(kind: str) -> str:
    return re.sub(r"\{\w+\}", "7", PATTERNS[kind])


@pytest.mark.parametrize(
    ("text", "kind", "ids", "project"),
    [
        ("users/alice", "user", ("alice",), None),
        ("serviceAccounts/app", "serviceAccount", ("app",), None),
        ("nodes/gpu-1", "node", ("gpu-1",), None),
        ("bindings/7f3a", "binding", ("7f3a",), None),
        ("projects/p", "project", ("p",), "p"),
        ("projects/p/datasets/d/versions/3", "datasetVersion", ("p", "d", "3"), "p"),
        ("projects/p/tokenizers/t", "tokenizer", ("p", "t"), "p"),
        ("projects/p/endpoints/e/replicas/0", "replica", ("p", "e", "0"), "p"),
    ],
)
def test_known_answers(text: str, kind: str, ids: tuple[str, ...], project: str | None) -> None:
    name = Name.parse(text)
    assert name == Name(kind, ids)
    assert str(name) == text
    assert name.project == project
    assert name.id == ids[-1]


@pytest.mark.parametrize("kind", PATTERNS)
def test_every_pattern_parses_as_itself_only(kind: str) -> None:
    assert Name.parse(example(kind)).kind == kind


@given(IDS, IDS, NUMBERS)
def test_round_trip(project: str, model: str, version: str) -> None:
    text = names.model_version(project, model, version)
    name = Name.parse(text, "modelVersion")
    assert (name["project"], name["model"], name["version"]) == (project, model, version)
    assert str(name.parent) == names.model(project, model)


def test_each_formatter() -> None:
    assert [
        names.user("u"),
        names.service_account("s"),
        names.role("r"),
        names.binding("b"),
        names.node("n"),
        names.gateway("g"),
        names.project("p"),
        names.dataset("p", "d"),
        names.dataset_version("p", "d", 3),
        names.tokenizer("p", "t"),
        names.model("p", "m"),
        names.model_version("p", "m", "4"),
        names.job("p", "j"),
        names.endpoint("p", "e"),
    ] == [
        "users/u",
        "serviceAccounts/s",
        "roles/r",
        "bindings/b",
        "nodes/n",
        "gateways/g",
        "projects/p",
        "projects/p/datasets/d",
        "projects/p/datasets/d/versions/3",
        "projects/p/tokenizers/t",
        "projects/p/models/m",
        "projects/p/models/m/versions/4",
        "projects/p/jobs/j",
        "projects/p/endpoints/e",
    ]


@pytest.mark.attack
@pytest.mark.parametrize(
    "text",
    [
        "projects",
        "projects/",
        "projects//datasets/d",
        "projects/a/../b",
        "projects/../datasets/d",
        "projects/a/",
        "/projects/a",
        "projects/a/datasets/b/versions/0",
        "projects/a/datasets/b/versions/03",
        "projects/a/datasets/b/versions/-1",
        "projects/a/datasets/b/versions/1234567890",
        "projects/A",
        "projects/a b",
        "projects/a\n",
        "projects/a\x00",
        "projects/pröject",
        "projects/\uff11",
        "projects/a:b",
        "projects/*",
        "projects/-a",
        "projects/" + "a" * 64,
        "secrets/a",
        "x" * 1_000_000,
    ],
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        Name.parse(text, field="job.dataset")
    assert list(raised.value.fields) == ["job.dataset"]
    assert len(str(raised.value)) < 200
    assert str(raised.value).isprintable()


def test_only_the_asked_kinds() -> None:
    with pytest.raises(InvalidInput) as raised:
        Name.parse("projects/p/jobs/j", "dataset", "datasetVersion")
    assert str(raised.value) == (
        "name: 'projects/p/jobs/j' is not projects/{project}/datasets/{dataset} "
        "or projects/{project}/datasets/{dataset}/versions/{version}"
    )


@pytest.mark.attack
def test_an_id_cannot_smuggle_a_segment() -> None:
    with pytest.raises(InvalidInput):
        names.dataset("p/datasets/x", "d")
    with pytest.raises(InvalidInput):
        names.job("p", "..")
    with pytest.raises(InvalidInput):
        Name.of("job", "p")


@pytest.mark.parametrize("good", ["ab", "a1", "a-b", "a" * 63])
def test_new_ids(good: str) -> None:
    assert check_id(good, "job_id") == good


@pytest.mark.parametrize(
    "bad", ["", "a", "1a", "-a", "A1", "a_b", "a.b", "a/b", "a" * 64, "ab\n", "äb"]
)
def test_refused_new_ids(bad: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        check_id(bad, "job_id")
    assert list(raised.value.fields) == ["job_id"]


def test_the_id_of_an_application_begins_with_its_project() -> None:
    assert names.new_service_account_id("demo", "app") == "demo--app"
    assert names.new_service_account_id("demo", "demo--app") == "demo--app"
    assert names.new_service_account_id("a-b", "c-d") == "a-b--c-d"


@pytest.mark.attack
def test_applications_of_two_projects_never_have_one_id() -> None:
    parts = ["ab", "ab-", "ab--", "a--b", "b-a", "ab--b", "bb"]
    made: dict[str, str] = {}
    for project in parts:
        for account in parts:
            try:
                found = names.new_service_account_id(project, account)
            except InvalidInput:
                continue
            assert made.setdefault(found, project) == project


@pytest.mark.parametrize(
    ("account", "says"),
    [("", "is not an id"), ("a--b", "holds --"), ("A", "is not an id"), ("a" * 60, "is too long")],
)
def test_refused_ids_of_applications(account: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as raised:
        names.new_service_account_id("demo", account)
    assert list(raised.value.fields) == ["service_account_id"]


def test_every_format_in_the_protos_is_in_the_table() -> None:
    found = {
        pattern
        for file in PROTO.rglob("*.proto")
        for line in re.findall(r"Format: (.*)", file.read_text())
        for pattern in re.findall(r"[a-zA-Z]+/\{[\w/{}]+", line)
    }
    assert found
    assert found <= set(PATTERNS.values())
