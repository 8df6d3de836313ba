"""Reports: shown as they were written, page by page, and nothing that is no report registered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.api.reports.v1 import report_service_pb2 as rpc
from appliance.control.services.data import outputs
from appliance.control.services.data.artifacts import Provenance
from appliance.control.services.data.reports import Reports
from appliance.core.artifact_kinds import REPORT
from appliance.core.errors import AlreadyExists, InvalidInput, NotFound, Tampered
from appliance.jobs.runtime.pictures import curve
from appliance.jobs.runtime.reports import number, table
from tests.fakes.lab import ALICE, PROJECT, Lab, write

CONTENT = {
    "title": "Perplexity of a model",
    "sections": [
        {
            "heading": "Result",
            "text": "It was measured.",
            "numbers": [number("perplexity", 12.5), number("nats", 2.5, "per token")],
            "tables": [table("Along the text", ["tokens", "note"], [[512, "first"], [1024.5, ""]])],
            "pictures": [{"file": "curve.png", "caption": "A curve"}],
        }
    ],
}
FILES = {"report.json": json.dumps(CONTENT).encode(), "curve.png": curve([(0, 1.0), (1, 2.0)])}


@pytest.fixture
def reports(lab: Lab) -> Reports:
    return Reports(lab.database, lab.work.artifacts, lab.work.deletions)


def make(lab: Lab, name: str, files: Mapping[str, bytes] = FILES) -> str:
    return lab.version("report", name, files, {"kind": REPORT, "title": name, "pictures": 1})


def facts(
    lab: Lab, files: Mapping[str, bytes], kind: str = REPORT, name: str = "r"
) -> dict[str, Any]:
    """What registration reads of an output that is to be a report."""
    artifacts = lab.work.artifacts
    with lab.database.write() as transaction:
        version = artifacts.allocate(
            transaction, PROJECT, "report", name, Provenance("users/alice")
        )
    digest = write(artifacts.writer(version), files)
    return outputs.facts_of(kind, artifacts.verify(version, digest), ())


def test_a_report_is_shown_as_it_was_written(lab: Lab, reports: Reports) -> None:
    name = make(lab, "quality")
    assert name == "projects/demo/reports/quality"
    found = reports.get(ALICE, name)
    assert (found.name, found.title, found.pictures) == (name, "quality", 1)
    assert found.content.title == CONTENT["title"]
    (section,) = found.content.sections
    assert [(each.name, each.value, each.unit) for each in section.numbers] == [
        ("perplexity", 12.5, ""),
        ("nats", 2.5, "per token"),
    ]
    cells = section.tables[0].rows[0].cells
    assert [(c.number, c.text, c.WhichOneof("value")) for c in cells] == [
        (512, "", "number"),
        (0, "first", "text"),
    ]
    with pytest.raises(NotFound):
        reports.get(ALICE, "projects/demo/reports/none")


def test_reports_are_listed_by_pages_without_what_they_say(lab: Lab, reports: Reports) -> None:
    for name in ("b", "c", "a"):
        make(lab, f"{name}1")
    request = rpc.ListReportsRequest(parent="projects/demo", page_size=2)
    page = reports.list(ALICE, request)
    request.page_token = page.next_page_token
    rest = reports.list(ALICE, request)
    names = [report.name.rpartition("/")[2] for report in (*page.reports, *rest.reports)]
    assert (names, rest.next_page_token) == (["a1", "b1", "c1"], "")
    assert not any(report.HasField("content") for report in page.reports)


def test_its_files_come_out_without_a_project_that_allows_downloads(
    lab: Lab, reports: Reports
) -> None:
    name = make(lab, "quality")
    parts = list(reports.files(ALICE, rpc.DownloadReportRequest(name=name)))
    assert [each.file for each in parts[0].listing.files] == sorted(FILES)
    assert b"".join(part.data for part in parts) == FILES["curve.png"] + FILES["report.json"]


def test_a_name_is_taken_once(lab: Lab) -> None:
    make(lab, "quality")
    with pytest.raises(AlreadyExists, match="projects/demo/reports/quality exists already"):
        make(lab, "quality")


def test_facts_are_read_from_the_files(lab: Lab) -> None:
    assert facts(lab, FILES) == {
        "kind": REPORT,
        "title": "Perplexity of a model",
        "pictures": 1,
    }


@pytest.mark.attack
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"report.json": b"{"}, "not JSON"),
        ({"curve.png": b"MZ"}, "is no PNG picture"),
        ({"evil.svg": b"<svg onload='steal()'/>"}, "no picture of a report"),
        ({"model.safetensors": bytes(8)}, "no picture of a report"),
        ({"curve.png": bytes(2 << 20)}, "bytes, 1048576 are allowed"),
    ],
)
def test_what_is_no_report_is_not_registered(lab: Lab, change: dict[str, bytes], why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        facts(lab, FILES | change)


@pytest.mark.attack
def test_a_report_that_was_changed_is_not_shown(lab: Lab, reports: Reports) -> None:
    name = make(lab, "quality")
    path = lab.objects / PROJECT / lab.version_row(name).uid / "report.json"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(Tampered):
        reports.get(ALICE, name)


def evaluation(lab: Lab, name: str, **spec: str) -> job_service_pb2.CreateJobRequest:
    wanted = job_pb2.EvaluateSpec(
        model=lab.model(f"m-{name}"), dataset=lab.tokens(f"d-{name}"), **spec
    )
    return job_service_pb2.CreateJobRequest(
        parent="projects/demo", job_id=name, job=job_pb2.Job(evaluate=wanted)
    )


async def test_a_job_makes_a_report_and_appears_with_it(lab: Lab, reports: Reports) -> None:
    node = lab.node("n1")
    node.say_lacks({"evaluate": ""})
    await node.connect()
    name = "projects/demo/reports/quality"
    lab.jobs.create(ALICE, evaluation(lab, "e1", output_report=name))
    lab.look()
    await node.take()
    with pytest.raises(NotFound):
        reports.get(ALICE, name)
    node.succeed(node.started[0].work, {"report": FILES})
    job = lab.job("e1")
    assert (job.state, list(job.outputs)) == (job.STATE_SUCCEEDED, [name])
    found = reports.get(ALICE, name)
    assert (found.title, found.job) == (CONTENT["title"], "projects/demo/jobs/e1")
    assert (found.creator, len(found.inputs)) == ("users/alice", 2)
    with pytest.raises(InvalidInput, match="exists already; choose another name"):
        lab.jobs.create(ALICE, evaluation(lab, "e2", output_report=name))


@pytest.mark.attack
async def test_a_job_whose_report_is_none_fails_and_leaves_none(lab: Lab, reports: Reports) -> None:
    node = lab.node("n1")
    node.say_lacks({"evaluate": ""})
    await node.connect()
    name = "projects/demo/reports/quality"
    lab.jobs.create(ALICE, evaluation(lab, "e1", output_report=name))
    lab.look()
    await node.take()
    node.succeed(node.started[0].work, {"report": FILES | {"curve.png": b"<svg/>"}})
    job = lab.job("e1")
    assert job.state == job.STATE_FAILED
    assert "an output is refused: curve.png is no PNG picture" in job.state_reason
    with pytest.raises(NotFound):
        reports.get(ALICE, name)


async def test_a_report_is_made_only_where_one_is_wanted(lab: Lab) -> None:
    node = lab.node("n1")
    node.say_lacks({"evaluate": ""})
    await node.connect()
    lab.jobs.create(ALICE, evaluation(lab, "e1"))
    lab.look()
    await node.take()
    node.succeed(node.started[0].work)
    assert lab.job("e1").state == job_pb2.Job.STATE_SUCCEEDED


@pytest.mark.attack
@pytest.mark.parametrize(
    ("kind", "file", "data"),
    [
        ("tokens", "report.json", b'{"kept": Infinity}'),
        ("tokens", "report.json", b'{"kept": 1' + b"0" * 5000 + b"}"),
        ("tokens", "index.json", b"[" * 100_000),
        ("tokens", "index.json", b'{"tokens": {"train": 1e400}}'),
        ("tokenizer", "tokenizer.json", b'{"model": {"vocab": {}}, "added_tokens": [1]}'),
    ],
)
def test_json_of_a_job_that_no_reader_takes_is_refused(
    lab: Lab, kind: str, file: str, data: bytes
) -> None:
    """Anything else than a refusal is tried again for ever."""
    good = {
        "index.json": b'{"tokens": {"train": 1}, "vocabulary_size": 1}',
        "report.json": b'{"kept": 1}',
        "tokenizer.json": b'{"model": {"vocab": {}}}',
        "tokenizer_config.json": b"{}",
    }
    assert facts(lab, good, kind)
    with pytest.raises(InvalidInput, match=file):
        facts(lab, good | {file: data}, kind, "bad")
