"""Log lines: one record, one line of JSON, no secrets, nothing forged."""

import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest

from appliance.core import log


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture
def lines() -> io.StringIO:
    stream = io.StringIO()
    log.configure("control", stream)
    return stream


def test_fields(lines: io.StringIO) -> None:
    token = log.request_id.set("r-1")
    logging.getLogger("a.b").warning("kept %d", 3, extra={"job": "j1", "request_id": "forged"})
    log.request_id.reset(token)
    (line,) = lines.getvalue().splitlines()
    record = json.loads(line)
    assert record.pop("ts")[10] == "T"
    assert record == {
        "level": "WARNING",
        "process": "control",
        "logger": "a.b",
        "message": "kept 3",
        "request_id": "r-1",
        "job": "j1",
    }


@pytest.mark.attack
@pytest.mark.parametrize(
    "text", ['x\n{"level": "INFO"}', "\r", "\x1b[31m", "\u2028", "\u202e", "\x00"]
)
def test_no_text_makes_a_second_line(lines: io.StringIO, text: str) -> None:
    logging.getLogger("a").error("user said %s", text, extra={"text": text})
    written = lines.getvalue()
    assert written.count("\n") == 1
    assert written.rstrip("\n").isprintable()
    assert written.isascii()
    assert json.loads(written)["text"] == text


@pytest.mark.attack
def test_no_token_is_written(lines: io.StringIO) -> None:
    secret = "sla_svc_a1b2_QWxhZGRpbjpvcGVu-U2VzYW1l_0f3c"
    try:
        int(f"bad header {secret}")
    except ValueError:
        logging.getLogger("a").exception("got %s", secret, extra={"header": f"Bearer {secret}"})
    written = lines.getvalue()
    assert "QWxhZGRpbj" not in written
    assert json.loads(written)["message"] == "got sla_svc_a1b2_[redacted]"
    assert "ValueError" in json.loads(written)["exception"]


def test_warnings_are_lines_too(lines: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert "DeprecationWarning: old" in json.loads(lines.getvalue())["message"]


def test_configuring_twice_writes_once(lines: io.StringIO) -> None:
    log.configure("control", lines)
    logging.getLogger("a").info("once")
    assert lines.getvalue().count("\n") == 1


@pytest.mark.attack
def test_headers_that_are_no_text_are_not_written_down(lines: io.StringIO) -> None:
    """gRPC says each of them at the level of an error, a thousand times what a stranger sent."""
    logging.getLogger("grpc._cython.cygrpc").error("Invalid encoding on %s", b"\xff" * 7000)
    assert lines.getvalue() == ""


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("all of it", 9, "all of it"),
        ("one\ntwo\nthree\n", 12, "two\nthree\n"),
        ("a line that is long\nend", 12, " is long\nend"),
        ("ééé", 5, "éé"),
        ("é" * 9, 1, ""),
    ],
)
def test_the_last_lines_of_a_text(text: str, limit: int, expected: str) -> None:
    assert log.last_lines(text, limit) == expected
