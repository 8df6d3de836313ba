"""What a work on this node says, turned into messages for the control plane.

Rules kept here:
* how far a job is, what it measured and what happened to it go together, as one report of what is
  new: of its state and of what happened the newest, of its steps all, `MAX_TOGETHER` at a time;
* steps that wait are thinned as those are that the control plane keeps (`core.thinning`), so an
  absence costs memory for `MAX_POINTS` of them at most, and resolution after that;
* of errors the first counts: what follows is its consequence;
* a job has succeeded only when its process ended with code 0; if it has not, the end of what its
  ranks wrote goes with the last word;
* a line that cannot be understood changes nothing (the launcher logs it).

Pure. Called by the agent, which owns one of these per work.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.api.jobs.v1 import job_pb2
from appliance.core.errors import Paused
from appliance.core.thinning import MAX_POINTS, thin
from appliance.node.running import Ended

_PROGRESS = ("step", "total", "message", "metrics")
MAX_CHECKPOINTS = 1000
"""Checkpoints that wait at most; a control plane that is away for longer misses the oldest, and
finds them in the object store."""
MAX_OUTPUTS = 16
MAX_TOGETHER = 256
"""Measured steps of one report."""


class Measured:
    """Steps that wait to be said, oldest first, and of a step done twice the later one."""

    def __init__(self) -> None:
        self._steps: dict[int, job_pb2.JobMetric] = {}

    def __bool__(self) -> bool:
        return bool(self._steps)

    def add(self, metric: job_pb2.JobMetric) -> None:
        """One more step."""
        self._steps.pop(metric.step, None)
        self._steps[metric.step] = metric
        if len(self._steps) > MAX_POINTS:
            kept = set(thin(self._steps))
            self._steps = {step: each for step, each in self._steps.items() if step in kept}

    def take(self) -> list[job_pb2.JobMetric]:
        """The oldest `MAX_TOGETHER`, which wait no more."""
        steps = list(self._steps)[:MAX_TOGETHER]
        return [self._steps.pop(step) for step in steps]


@dataclass
class JobReports:
    """The reports of one job under one lease."""

    work: rpc.WorkEpoch
    restarts: int = 0
    outputs: dict[str, rpc.OutputComplete] = field(default_factory=dict)
    checkpoint: rpc.CheckpointComplete | None = None
    _waiting: list[rpc.ReportRequest] = field(default_factory=list)
    _measured: Measured = field(default_factory=Measured)
    _progress: job_pb2.Progress | None = None
    _event: str = ""
    _is_news: bool = False
    _result: job_pb2.JobResult | None = None
    _error: tuple[str, str] | None = None

    def take(self, line: dict[str, Any]) -> None:
        """One report line. Raises KeyError, TypeError or ValueError when it is none."""
        match line["type"]:
            case "progress":
                self._take_progress(line)
            case "waiting":
                self._replace(message=str(line["message"]))
            case "event":
                self._take_event(line)
            case "checkpoint":
                self.checkpoint = rpc.CheckpointComplete(
                    work=self.work, step=int(line["step"]), manifest_digest=str(line["digest"])
                )
                self._add(rpc.ReportRequest(checkpoint=self.checkpoint))
            case "output":
                slot = str(line["slot"])
                if slot not in self.outputs and len(self.outputs) >= MAX_OUTPUTS:
                    raise ValueError("no job makes so many outputs")
                self.outputs[slot] = rpc.OutputComplete(
                    slot=slot,
                    manifest_digest=str(line["digest"]),
                    facts=json.dumps(line.get("facts", {}), sort_keys=True),
                )
            case "result":
                self._result = _result(line["value"])
            case "error" if self._error is None:
                self._error = (str(line["reason"]), str(line["message"]))
            case "error":
                pass
            case _:
                raise ValueError("no such report")

    def drain(self) -> list[rpc.ReportRequest]:
        """Checkpoints that have not been sent yet, oldest first."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def news(self) -> rpc.ReportRequest | None:
        """How far it is, what it measured and what happened since this was asked; None: nothing.

        Steps that are left are in the next one.
        """
        if not self._is_news:
            return None
        measured = self._measured.take()
        progress = rpc.JobProgress(
            work=self.work,
            progress=self._progress,
            restarts=self.restarts,
            event=self._event,
            measured=measured,
        )
        self._event = ""
        self._is_news = bool(self._measured)
        return rpc.ReportRequest(job_progress=progress)

    def rest(self) -> list[rpc.ReportRequest]:
        """All that has not been sent yet, which is said before the last word."""
        said = self.drain()
        while (news := self.news()) is not None:
            said.append(news)
        return said

    def outcome(self, how: Ended) -> str:
        """How it ended, for the metrics: `succeeded`, `paused` or `failed`."""
        if self._error is not None and self._error[0] == Paused.reason:
            return "paused"
        return "succeeded" if how.code == 0 else "failed"

    def ended(self, how: Ended) -> rpc.ReportRequest:
        """The last word on the job."""
        succeeded = how.code == 0
        reason, message = "", ""
        if not succeeded:
            # Killed from outside, without a word: another start may go better.
            reason = "LEADER_LOST" if how.code < 0 else "INTERNAL"
            reason, message = self._error or (reason, how.sentence())
            if how.out_of_memory:
                reason, message = "RESOURCE_EXHAUSTED", how.sentence()
        ended = rpc.JobEnded(
            work=self.work,
            succeeded=succeeded,
            reason=reason,
            message=message,
            outputs=[self.outputs[slot] for slot in sorted(self.outputs)],
            result=self._result if succeeded else None,
            log="" if succeeded else how.last.text,
            log_cut=not succeeded and how.last.cut,
        )
        return rpc.ReportRequest(job_ended=ended)

    def _take_progress(self, line: dict[str, Any]) -> None:
        step = int(line["step"])
        if step < 0:
            raise ValueError("steps are counted from zero")
        metrics = {str(name): float(value) for name, value in line["metrics"].items()}
        self._replace(
            step=step,
            total=int(line["total"]),
            message=str(line.get("message", "")),
            metrics=metrics,
        )
        if metrics:
            self._measured.add(job_pb2.JobMetric(step=step, values=metrics))

    def _replace(self, **members: Any) -> None:
        """Newer progress; members that are not given stay as they are."""
        known = self._progress
        old = {} if known is None else {name: getattr(known, name) for name in _PROGRESS}
        self._progress = job_pb2.Progress(**(old | members))
        self._is_news = True

    def _take_event(self, line: dict[str, Any]) -> None:
        self.restarts = int(line.get("restarts", self.restarts))
        if self._progress is not None:
            # Nobody waits for those who have just begun.
            self._progress.message = ""
        rest = [f"{name}={line[name]}" for name in sorted(line) if name not in ("type", "name")]
        self._event = str(line.get("message") or " ".join([str(line["name"]), *rest]))
        self._is_news = True

    def _add(self, message: rpc.ReportRequest) -> None:
        self._waiting.append(message)
        if len(self._waiting) > MAX_CHECKPOINTS:
            del self._waiting[0]


def _result(value: dict[str, Any]) -> job_pb2.JobResult:
    return job_pb2.JobResult(
        values={str(name): float(number) for name, number in value["values"].items()},
        dropped={str(reason): int(count) for reason, count in value["dropped"].items()},
    )


@dataclass
class ReplicaReports:
    """The reports of one replica under one lease."""

    work: rpc.WorkEpoch
    endpoint: str = ""
    metrics: str = ""
    """Where its numbers are, as it says."""
    ready: rpc.ReportRequest | None = None
    _error: str = ""
    _waiting: list[rpc.ReportRequest] = field(default_factory=list)

    def take(self, line: dict[str, Any]) -> None:
        """One report line. Raises KeyError, TypeError or ValueError when it is none."""
        match line["type"]:
            case "ready":
                changed = rpc.ReplicaChanged(
                    work=self.work, ready=True, address=str(line["address"])
                )
                self.ready = rpc.ReportRequest(replica_changed=changed)
                self._waiting = [self.ready]
                self.metrics = str(line.get("metrics", ""))
            case "error":
                self._error = self._error or str(line["message"])
            case _:
                raise ValueError("no such report")

    def drain(self) -> list[rpc.ReportRequest]:
        """What has not been sent yet."""
        waiting, self._waiting = self._waiting, []
        return waiting

    rest = drain

    def outcome(self, how: Ended) -> str:
        """How it ended, for the metrics: `succeeded` or `failed`."""
        return "succeeded" if how.code == 0 else "failed"

    def ended(self, how: Ended) -> rpc.ReportRequest:
        """The last word on the replica."""
        message = self._error
        if not message:
            message = f"the replica ended: {how.sentence()}; its log on the node says more"
        changed = rpc.ReplicaChanged(work=self.work, ended=True, message=message)
        return rpc.ReportRequest(replica_changed=changed)
