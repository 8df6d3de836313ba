"""Runs a real leader with real ranks for a FakeJob, the way an agent does.

gang = RunningGang(job)                               # the toy kind
gang = RunningGang(job, module="appliance.jobs")      # the kinds of the product
gang.wait(60)  -> exit code;   job.lines() -> reports
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from appliance.core.process_tree import session
from tests.fakes.job_context import FakeJob

ROOT = Path(__file__).parents[2]


class RunningGang:
    """A leader process; its reports go to the job's report file, its log to `log`.

    `first` is a folder that its Python imports from before any other.
    """

    def __init__(
        self, job: FakeJob, module: str = "tests.fakes.leader", first: Path | None = None
    ) -> None:
        folders = [*([str(first)] if first else []), str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.job = job
        self.log = job.folder / "leader.log"
        orders_read, orders_write = os.pipe()
        reports_read, reports_write = os.pipe()
        command = [sys.executable, "-m", module, "--work", job.orders["uid"], "--epoch", "1"]
        command += ["--orders-fd", str(orders_read), "--reports-fd", str(reports_write)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                pass_fds=(orders_read, reports_write),
                cwd=job.scratch,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    "PATH": os.environ["PATH"],
                    "PYTHONPATH": os.pathsep.join(folders),
                    "OMP_NUM_THREADS": "1",
                    "TMPDIR": str(job.scratch),
                },
            )
        os.close(orders_read)
        os.close(reports_write)
        with os.fdopen(orders_write, "wb") as pipe:
            pipe.write(job.document())
        self._seen = threading.Condition()
        self._lines: list[dict[str, Any]] = []
        self._pump = threading.Thread(target=self._read, args=(reports_read,), daemon=True)
        self._pump.start()

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as pipe, self.job.reports.open("ab") as file:
            for line in pipe:
                file.write(line)
                file.flush()
                with self._seen:
                    self._lines.append(json.loads(line))
                    self._seen.notify_all()

    def until(self, kind: str, timeout: float = 60, **members: object) -> dict[str, Any]:
        """Wait for a report of this type with these members."""

        def found() -> dict[str, Any] | None:
            for line in self._lines:
                if line["type"] == kind and members.items() <= line.items():
                    return line
            return None

        with self._seen:
            line = self._seen.wait_for(found, timeout)
        assert line, self.log.read_text()
        return line

    def wait(self, timeout: float = 60) -> int:
        """Exit code of the leader, when all its reports are in."""
        try:
            code = self.process.wait(timeout)
        finally:
            self.kill()
        self._pump.join(5)
        return code

    def kill(self) -> None:
        """End the whole session, if any of it is left."""
        try:
            os.killpg(self.process.pid, 9)
        except ProcessLookupError:
            return
        self.process.wait(10)

    def family(self) -> list[int]:
        """Process ids of the leader's session."""
        return session(self.process.pid)
