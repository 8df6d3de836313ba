"""Write the report of a job: its content and its pictures, checked as the control plane will.

Rule kept here: what would be refused after hours of work is refused where it is written, with the
same sentence. No text of a dataset belongs into a report: whoever may see models may read it.

Called by the kinds of jobs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from appliance.core.report_content import REPORT_FILE, check_report
from appliance.crypto.artifacts import ArtifactWriter


def write_report(
    output: ArtifactWriter, content: Mapping[str, Any], pictures: Mapping[str, bytes] | None = None
) -> None:
    """Write and finish a report.

    Args:
        output: of the report's slot.
        content: `ReportContent` of the protos, in JSON.
        pictures: PNG files by name.

    Raises InvalidInput when it is no report.
    """
    text = json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    files = {REPORT_FILE: text, **(pictures or {})}
    check_report(files)
    for file, data in files.items():
        with output.create(file) as writer:
            writer.write(data)
    output.finish({"title": content["title"]})


def number(name: str, value: float, unit: str = "") -> dict[str, Any]:
    """A number of a section."""
    return {"name": name, "value": value, "unit": unit}


def table(caption: str, columns: list[str], rows: list[list[float | str]]) -> dict[str, Any]:
    """A table of a section."""
    return {
        "caption": caption,
        "columns": columns,
        "rows": [{"cells": [_cell(value) for value in row]} for row in rows],
    }


def _cell(value: float | str) -> dict[str, Any]:
    return {"text": value} if isinstance(value, str) else {"number": value}
