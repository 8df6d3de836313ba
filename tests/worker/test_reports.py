from __future__ import annotations

import json
import os
from collections.abc import Callable

from appliance.core.errors import Tampered
from appliance.worker.reports import MAX_LINE, WorkerReports


def lines(act: Callable[[WorkerReports], None]) -> bytes:
    read, write = os.pipe()
    act(WorkerReports(write))
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        return pipe.read()


def test_lines_are_json() -> None:
    assert json.loads(lines(lambda r: r.ready("127.0.0.1:1", "127.0.0.1:2"))) == {
        "type": "ready",
        "address": "127.0.0.1:1",
        "metrics": "127.0.0.1:2",
    }
    assert json.loads(lines(lambda r: r.error(Tampered("It was changed.", object="u")))) == {
        "type": "error",
        "reason": "OBJECT_TAMPERED",
        "message": "It was changed.",
        "object": "u",
    }


def test_a_bug_shows_its_kind_alone() -> None:
    assert "secret" not in lines(lambda r: r.error(ValueError("secret"))).decode()


def test_a_long_line_is_cut_and_stays_json() -> None:
    line = lines(lambda r: r.error(Tampered("ä" * 9999, object="\x01" * 9999)))
    assert len(line) <= MAX_LINE
    assert json.loads(line)["reason"] == "OBJECT_TAMPERED"


def test_an_agent_that_is_gone_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    WorkerReports(write).ready("a", "b")
    os.close(write)
