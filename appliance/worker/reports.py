"""What the worker tells its node agent: JSON lines on the reports pipe.

Rules kept here: a line is written with one `write` of at most 4096 bytes, which a pipe does not
split or mix with others; a long message is cut, not the line.

Called by `appliance.worker.main` and by the watch over the engine's processes.
"""

from __future__ import annotations

import contextlib
import json
import os

from appliance.core.errors import ApplianceError, Internal

MAX_LINE = 4096
MAX_MESSAGE = 1500


class WorkerReports:
    """The writing end of the reports pipe."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        os.set_inheritable(descriptor, False)

    def ready(self, address: str, metrics: str) -> None:
        """The engine made its first token: where gateways attach, and where metrics are."""
        self._write({"type": "ready", "address": address, "metrics": metrics})

    def error(self, error: BaseException) -> None:
        """Why the worker is about to exit; of a bug only its kind is told."""
        if not isinstance(error, ApplianceError):
            error = Internal(
                f"The worker met an unexpected {type(error).__name__}; its log says where."
            )
        self._write(error_line(error))

    def _write(self, line: dict[str, object]) -> None:
        # An agent that is gone reads nothing; the watch ends this process for that.
        with contextlib.suppress(BrokenPipeError):
            os.write(self.descriptor, encode(line))


def error_line(error: ApplianceError) -> dict[str, object]:
    """An error as a line's value; the object a message is about goes along when there is one."""
    line: dict[str, object] = {
        "type": "error",
        "reason": error.reason,
        "message": error.message[:MAX_MESSAGE],
    }
    if "object" in error.metadata:
        line["object"] = error.metadata["object"][:MAX_MESSAGE]
    return line


def encode(line: dict[str, object]) -> bytes:
    """One line with its newline, short enough for one write to a pipe."""
    data = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    if len(data) > MAX_LINE:
        shorter = {k: v[:300] if isinstance(v, str) else v for k, v in line.items()}
        data = json.dumps(shorter, separators=(",", ":")).encode() + b"\n"
    return data
