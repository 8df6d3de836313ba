"""What a job says to its agent: one JSON line a report, on an inherited pipe.

Rules kept here:
* a line has at most 4096 bytes and is one `write`, so that lines of several ranks never mix
  (`PIPE_BUF`, pipe(7));
* only rank 0 reports for the job; the calls of other ranks do nothing, so a kind needs no `if rank
  == 0`. An error is reported by whichever rank has it;
* no text of users, no keys: names, numbers, digests and sentences of ours;
* what is reported is in the log too, for whoever reads along: progress once in `NOTE_SECONDS`.

Called by the kinds (`progress`, `result`, `event`), by outputs and checkpoints, and by the leader
(`waiting`, `error`).
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from typing import Any

from appliance.core.errors import InvalidInput, LeaseLost

MAX_LINE = 4096
MAX_TEXT = 1000
NOTE_SECONDS = 10.0

logger = logging.getLogger(__name__)


class Reporter:
    """Writes reports of one rank.

    Args:
        descriptor: the writing end of the pipe.
        rank: of the process; rank 0 reports for the job.
    """

    def __init__(self, descriptor: int, rank: int) -> None:
        self._descriptor = descriptor
        self._rank = rank
        self._noted = float("-inf")

    def progress(self, step: int, total: int, message: str = "", **metrics: float) -> None:
        """How far the job has come: `step` of `total` (0: unknown), and measurements by name.

        A measurement that is not finite is left out and named in the message, which is what a
        person looks for.
        """
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        lost = sorted(set(metrics) - set(finite))
        if lost:
            message = f"{message} ({', '.join(lost)} not finite)".strip()
        self._note_progress(step, total, message, finite)
        self._say(
            type="progress",
            step=int(step),
            total=int(total),
            message=message[:MAX_TEXT],
            metrics=finite,
        )

    def result(self, values: Mapping[str, float], dropped: Mapping[str, int] | None = None) -> None:
        """What the job found.

        Finite numbers by name, and for a prepare job counts of dropped documents by reason.
        """
        wrong = [name for name, value in values.items() if not _finite(value)]
        if wrong:
            raise InvalidInput(f"the result {wrong[0]} is not a finite number")
        numbers = {name: float(value) for name, value in values.items()}
        counts = {reason: int(count) for reason, count in (dropped or {}).items()}
        self._say(type="result", value={"values": numbers, "dropped": counts})

    def waiting(self, message: str) -> None:
        """What the job waits for; empty when it goes on. What is known of its progress stays."""
        self._say(type="waiting", message=message[:MAX_TEXT])

    def event(self, name: str, message: str = "", **fields: object) -> None:
        """Something for the job's history, such as `rank_restart`.

        Args:
            name: of the event.
            message: a sentence for a person.
            fields: numbers and short words of ours.
        """
        sentence = {"message": message[:MAX_TEXT]} if message else {}
        self._say(type="event", name=name, **sentence, **fields)

    def checkpoint(self, step: int, folder: str, name: str, digest: str) -> None:
        """A checkpoint is complete in the object store."""
        if self._rank == 0:
            logger.info("saved the checkpoint of step %s", step)
        self._say(type="checkpoint", step=step, folder=folder, object=name, digest=digest)

    def output(self, slot: str, folder: str, digest: str, facts: Mapping[str, Any]) -> None:
        """An output is complete in the object store; `facts` become facts of its resource."""
        self._say(type="output", slot=slot, folder=folder, digest=digest, facts=dict(facts))

    def error(self, reason: str, message: str) -> None:
        """Why the job cannot go on; said by any rank."""
        self._write({"type": "error", "reason": reason, "message": message[:MAX_TEXT]})

    def _note_progress(
        self, step: int, total: int, message: str, metrics: Mapping[str, float]
    ) -> None:
        now = time.monotonic()
        is_last = 0 < total <= step
        if self._rank == 0 and (is_last or now - self._noted >= NOTE_SECONDS):
            self._noted = now
            of = f"step {step} of {total}" if total else f"step {step}"
            measured = [f"{name} {value:.6g}" for name, value in metrics.items()]
            logger.info("%s", ", ".join([of, *filter(None, [message]), *measured]))

    def _say(self, **line: object) -> None:
        if self._rank == 0:
            self._write(line)

    def _write(self, line: Mapping[str, object]) -> None:
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        if len(data) > MAX_LINE:
            raise InvalidInput(
                f"a report of kind {line['type']} has {len(data)} bytes, more than {MAX_LINE}:"
                " put it into a file of an output"
            )
        try:
            os.write(self._descriptor, data)
        except BrokenPipeError as error:
            raise LeaseLost("the agent of this node is gone; stop") from error


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
