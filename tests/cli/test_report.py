"""`appliance report`: a report in a terminal, and its files in a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from appliance.api.data.v1 import download_pb2
from appliance.api.reports.v1 import report_pb2, report_service_pb2
from tests.fakes.command_line import Run
from tests.fakes.control_api import FakeApi

NAME = "projects/demo/reports/quality"
RESOURCE: dict[str, Any] = {
    "name": NAME,
    "title": "Perplexity",
    "job": "projects/demo/jobs/e1",
    "create_time": "2026-11-28T10:00:00Z",
    "pictures": 1,
}
CONTENT: dict[str, Any] = {
    "title": "Perplexity",
    "sections": [
        {
            "heading": "Result",
            "text": "First paragraph.\n" + "word " * 40,
            "numbers": [
                {"name": "perplexity", "value": 12.3456789},
                {"name": "tokens", "value": 4096, "unit": "tokens"},
            ],
            "tables": [
                {
                    "caption": "Along the text",
                    "columns": ["tokens", "perplexity"],
                    "rows": [
                        {"cells": [{"number": 512}, {"number": 13.5}]},
                        {"cells": [{"text": "all"}, {}]},
                    ],
                }
            ],
            "pictures": [{"file": "curve.png", "caption": "A curve"}],
        },
    ],
}


def report(content: dict[str, Any] = CONTENT) -> report_pb2.Report:
    return json_format.ParseDict(RESOURCE | {"content": content}, report_pb2.Report())


def test_a_report_is_read_in_a_terminal(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["ReportService.GetReport"] = report()
    done = command("report", "get", "quality")
    assert done.code == 0
    assert done.out.splitlines() == [
        "Perplexity",
        "==========",
        f"{NAME}  2026-11-28 10:00:00 UTC  by projects/demo/jobs/e1",
        "",
        "Result",
        "------",
        "First paragraph.",
        " ".join(["word"] * 20),
        " ".join(["word"] * 20),
        "perplexity  12.3457",
        "tokens      4,096    tokens",
        "",
        "Along the text",
        "tokens  perplexity",
        "512     13.5",
        "all",
        "[curve.png: A curve]",
    ]
    (call,) = logged_in.named("ReportService.GetReport")
    assert call.request.name == NAME


def test_a_report_is_read_by_programs(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["ReportService.GetReport"] = report()
    found = json.loads(command("report", "get", "quality", "-o", "json").out)
    assert found["content"]["sections"][0]["numbers"][0]["value"] == 12.3456789


@pytest.mark.attack
def test_no_control_character_reaches_the_terminal(command: Run, logged_in: FakeApi) -> None:
    """Whatever a server sends; the control plane would have refused it."""
    evil = "a\x1b]0;owned\x07b\x9bc\rd\u202ee"
    content = {
        "title": evil,
        "sections": [
            {
                "heading": evil,
                "text": evil,
                "numbers": [{"name": evil, "value": 1, "unit": evil}],
                "tables": [
                    {"caption": evil, "columns": [evil], "rows": [{"cells": [{"text": evil}]}]}
                ],
                "pictures": [{"file": evil, "caption": evil}],
            }
        ],
    }
    logged_in.answers["ReportService.GetReport"] = report(content)
    done = command("report", "get", "quality")
    assert done.code == 0
    assert {each for each in done.out if not each.isprintable()} == {"\n"}


def test_reports_are_listed(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["ReportService.ListReports"] = report_service_pb2.ListReportsResponse(
        reports=[json_format.ParseDict(RESOURCE, report_pb2.Report())]
    )
    lines = command("report", "list").out.splitlines()
    assert lines[0].split() == ["REPORT", "TITLE", "PICTURES", "MADE", "BY", "CREATED"]
    assert lines[1].split()[:4] == ["quality", "Perplexity", "1", "e1"]


def test_a_report_is_downloaded(command: Run, logged_in: FakeApi, tmp_path: Path) -> None:
    part, data = download_pb2.DownloadPart, b'{"title": "T"}'
    each = download_pb2.DownloadedFile(file="report.json", size_bytes=len(data))
    listing = download_pb2.DownloadListing(name=NAME, manifest_digest="d", files=[each])
    end = download_pb2.DownloadedFile(
        file="report.json", size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
    )
    parts = [part(listing=listing), part(data=data), part(end=end)]
    logged_in.answers["ReportService.DownloadReport"] = parts
    assert command("report", "download", "quality", str(tmp_path / "quality")).code == 0
    assert (tmp_path / "quality/report.json").read_bytes() == data
