"""The report of an evaluation says what the job's result says, and how it came."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from appliance.core.report_content import check_report
from appliance.core.thinning import MAX_POINTS
from appliance.jobs.assess.evaluate import run
from appliance.jobs.assess.evaluation_report import PICTURE, TABLE_ROWS, Course
from tests.jobs.assess.test_evaluate import MODEL, evaluate, files_of, tiny


def test_a_report_is_written_where_one_is_wanted(tmp_path: Path) -> None:
    report = "projects/p/reports/r"
    job = evaluate(tmp_path, files_of(tiny(tied=True), tmp_path / "hf"), output_report=report)
    job.add_output("report", report)
    run(job.context())
    result = job.lines("result")[-1]["value"]["values"]
    made = job.output("report")
    files = {file: made.read_bytes(file) for file in made.files()}
    content = check_report(files)
    assert set(files) == {"report.json", PICTURE}
    assert content["title"] == f"Perplexity of {MODEL}"
    measured, how, along = content["sections"]
    assert {each["name"]: each["value"] for each in measured["numbers"]} == result
    assert how["numbers"] == [{"name": "window", "value": 64, "unit": "tokens"}]
    *_, last = along["tables"][0]["rows"]
    assert last["cells"][1]["number"] == pytest.approx(result["perplexity"])
    # No word of the held-out text is in it.
    assert "abc abd" not in json.dumps(content)


def test_without_one_nothing_is_written(tmp_path: Path) -> None:
    job = evaluate(tmp_path, files_of(tiny(tied=True), tmp_path / "hf"))
    run(job.context())
    assert job.lines("output") == []


def test_a_long_course_is_thinned_from_its_first_point_to_its_last() -> None:
    course = Course()
    for step in range(1, 20_001):
        course.add(step, math.inf if step == 500 else 1 / step)
    points = course.points()
    assert (points[0], points[-1]) == ((1, 1.0), (20_000, 1 / 20_000))
    assert MAX_POINTS / 2 <= len(points) <= MAX_POINTS
    assert len(course.points(TABLE_ROWS)) <= TABLE_ROWS
