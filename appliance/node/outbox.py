"""What this node says of its work, kept until the control plane has taken it in.

Rules kept here:
* reports of a stream are numbered from 1 on; one that was answered is forgotten, with those before;
* a stream that dies takes along what was written into it: that is said again on the next one, in
  its order;
* of each work `MAX_CHECKPOINTS` checkpoints are kept; the control plane finds older ones in the
  object store. Progress, with its steps, is never given up for them: `works` sends more only when
  all that it sent was answered;
* the last word on a work is kept until it was answered, however much else is said, and its work
  counts as held until then: a control plane that is behind with reports does not take it for lost;
* an order that comes late does not start again what has had its last word: that is remembered until
  a list of leases no longer names the work.

Pure. Called by `works`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.node.reports import MAX_CHECKPOINTS

Work = tuple[str, int]
"""A piece of work and its epoch."""


@dataclass
class _LastWord:
    """The end of a work; `number` is of its last report on this stream, None when not yet sent."""

    reports: list[rpc.ReportRequest]
    number: int | None = None
    heard: bool = False


class ReportOutbox:
    """The reports of one node."""

    def __init__(self) -> None:
        self._number = 0
        self._sent: deque[tuple[int, rpc.ReportRequest]] = deque()
        self._words: dict[Work, _LastWord] = {}

    def begin(self, standing: Iterable[rpc.ReportRequest]) -> list[rpc.ReportRequest]:
        """What is said first on a new stream: what stands, then what nobody has answered."""
        self._number = 0
        again = [report for _, report in self._sent]
        self._sent.clear()
        for word in self._words.values():
            word.number = None
        return [*map(self._numbered, standing), *self.send(again, keep=True)]

    def send(self, reports: Iterable[rpc.ReportRequest], *, keep: bool) -> list[rpc.ReportRequest]:
        """Reports as they go into the stream; `keep`: until they are answered."""
        numbered = [self._numbered(report) for report in reports]
        if keep:
            self._sent.extend((report.number, report) for report in numbered)
            self._forget_checkpoints()
        return numbered

    def has_progress(self) -> bool:
        """Whether progress of any job was sent and not answered yet."""
        return any(report.HasField("job_progress") for _, report in self._sent)

    def end(self, work: Work, reports: list[rpc.ReportRequest]) -> None:
        """The last word on a work."""
        self._words[work] = _LastWord(reports)

    def unsent_ends(self) -> list[rpc.ReportRequest]:
        """Ends of work that this stream has not carried yet."""
        said: list[rpc.ReportRequest] = []
        for word in self._words.values():
            if word.number is None and not word.heard:
                said += self.send(word.reports, keep=False)
                word.number = self._number
        return said

    def acknowledge(self, number: int) -> None:
        """The control plane has taken in the reports up to this one."""
        while self._sent and self._sent[0][0] <= number:
            self._sent.popleft()
        for word in self._words.values():
            if word.number is not None and word.number <= number:
                word.heard = True

    def unacknowledged_ends(self) -> list[Work]:
        """Work that has ended without the control plane knowing it."""
        return [work for work, word in self._words.items() if not word.heard]

    def ended(self) -> Collection[Work]:
        """Work that has had its last word, and is remembered."""
        return self._words.keys()

    def forget(self, leases: Collection[Work]) -> None:
        """Forget the ends that were heard and of which these leases, newer ones, say nothing."""
        for work, word in list(self._words.items()):
            if word.heard and work not in leases:
                del self._words[work]

    def _forget_checkpoints(self) -> None:
        """Forget the oldest checkpoints of each work of which too many have no answer."""
        if len(self._sent) <= MAX_CHECKPOINTS:
            return
        works = [_checkpoint_of(report) for _, report in self._sent]
        over = {work: count - MAX_CHECKPOINTS for work, count in Counter(works).items()}
        kept: deque[tuple[int, rpc.ReportRequest]] = deque()
        for work, sent in zip(works, self._sent, strict=True):
            if work is not None and over[work] > 0:
                over[work] -= 1
            else:
                kept.append(sent)
        self._sent = kept

    def _numbered(self, report: rpc.ReportRequest) -> rpc.ReportRequest:
        self._number += 1
        numbered = rpc.ReportRequest()
        numbered.CopyFrom(report)
        numbered.number = self._number
        return numbered


def _checkpoint_of(report: rpc.ReportRequest) -> Work | None:
    """The work whose checkpoint a report says; None when it says something else."""
    if report.WhichOneof("report") != "checkpoint":
        return None
    return report.checkpoint.work.work, report.checkpoint.work.epoch
