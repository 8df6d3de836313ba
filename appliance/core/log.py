"""Logs: one JSON object a line on standard error, with the request's id, and never a token.

Rules kept here:
* one record is one line of ASCII: control characters, line separators and bidirectional marks are
  escaped by JSON, so no text from outside can forge a line (CWE-117);
* anything shaped like one of our bearer tokens loses its secret before it is written, wherever in
  the record it is;
* fields given as `extra={...}` stand beside the fixed fields and cannot replace them.

Called once by each process' composition root; everybody else uses `logging.getLogger(__name__)`.
"""

from __future__ import annotations

import json
import logging
import re
import time
from contextvars import ContextVar
from typing import TextIO

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request being served; set by the door of each server, carried into every line."""

TOKEN_BEGIN = "sla_"  # noqa: S105 - what is public of every token
"""How every bearer token of an appliance begins."""
_TOKEN = re.compile(r"(sla_[a-z]+_[A-Za-z0-9]+)_[A-Za-z0-9_-]+")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
}
_FIXED = ("ts", "level", "process", "logger", "message", "request_id", "exception")


def redact(text: str) -> str:
    """The text with the secret part of every bearer token taken out.

    The token's kind and id stay.
    """
    return _TOKEN.sub(r"\1_[redacted]", text)


def last_lines(text: str, limit: int) -> str:
    """The end of a text, at most `limit` bytes of UTF-8.

    Whole characters, and whole lines where one ends in the first half of what is left.
    """
    data = text.encode(errors="replace")
    if len(data) <= limit:
        return text
    data = data[-limit:]
    data = data[data.find(b"\n", 0, limit // 2) + 1 :]
    return data.decode(errors="ignore")


class JsonLines(logging.Formatter):
    """Formats a record as {ts, level, process, logger, message, request_id, …extra}."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """One line of ASCII without its newline."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "ts": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        line |= {key: value for key, value in extra.items() if key not in _FIXED}
        return redact(json.dumps(line, ensure_ascii=True, default=str))


def configure(process: str, stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Send all log records and warnings of this process to `stream` (standard error) as JSON."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines(process))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    # gRPC writes each header that is no text into the log, before any door of ours was asked: a
    # thousand times what a stranger sent. What it says of failed calls, the doors say themselves.
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
    logging.captureWarnings(capture=True)
