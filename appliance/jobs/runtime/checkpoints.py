"""The checkpoints of one job: artifacts in `<folder>/step-00000008`, the last two kept.

The attacks: storage is rolled back or changed so that training continues from other weights; a node
that lost its lease writes over the checkpoints of the one that took the job over. Rules kept here:
* every rank writes its own files; rank 0 writes the manifest last. A checkpoint without manifest is
  not there, so a crash at any moment leaves the one before usable;
* what goes away loses its manifest first, so half a deletion is never half a checkpoint;
* `latest` returns the newest complete one, authentic, the same on every rank, and not older than
  the control plane knows (Stale otherwise); an altered one is an error, not a reason to go back
  quietly;
* an older epoch neither saves beside a newer one nor deletes what it made;
* nothing is unpickled: ranks exchange JSON, and what a kind stores is its own business (tensors and
  JSON).

Called by the kinds through `Context.checkpoints()`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from appliance.core.errors import InvalidInput, LeaseLost, NotFound, Stale
from appliance.crypto.artifacts import (
    MANIFEST,
    ArtifactReader,
    ArtifactWriter,
    FileEntry,
    manifest_digest,
)
from appliance.crypto.store import Artifact, ObjectStore
from appliance.jobs.runtime.gather import gather
from appliance.jobs.runtime.orders import Resume
from appliance.jobs.runtime.reporter import Reporter

KEPT = 2
LARGEST_STEP = 10**8 - 1
_STEP = re.compile(r"step-([0-9]{8})")


@dataclass(frozen=True)
class CheckpointSeries:
    """The checkpoints of a job, seen by one rank.

    Args:
        store: where they lie.
        series: folder, identity and key of the series.
        epoch: of the lease under which this rank works.
        rank: of this process; rank 0 writes manifests and deletes.
        report: of this rank.
        fence: raises LeaseLost when the job must stop.
        resume: the newest checkpoint the control plane knows.
    """

    store: ObjectStore
    series: Artifact
    epoch: int
    rank: int
    report: Reporter
    fence: Callable[[], None]
    resume: Resume | None = None

    def save(
        self,
        step: int,
        write: Callable[[ArtifactWriter], None],
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Save a checkpoint; every rank calls with the same step and writes files of its own names.

        Returns on every rank when the checkpoint is complete and durable.

        Args:
            step: optimiser steps done.
            write: creates this rank's files.
            extra: numbers for the reader, kept in the clear in the manifest (rank 0's count).

        Raises:
            LeaseLost: another epoch has the job.
            Exhausted: no space is left; the checkpoint before is untouched.
        """
        self.fence()
        place = self._place(step)
        if self.rank == 0:
            self._check_epoch()
            self._remove(step)
        gather(None)
        writer = ArtifactWriter(
            self.store.fs,
            self.store.path(place.folder),
            place.key,
            place.project,
            place.object,
            epoch=self.epoch,
            moved=self.store.moved,
        )
        write(writer)
        entries = gather([entry.as_json() for entry in writer.entries()])
        if self.rank == 0:
            self.fence()
            for others in entries[1:]:
                writer.adopt(map(FileEntry.from_json, others))
            digest = manifest_digest(writer.finish({**(extra or {}), "step": step}))
            self.report.checkpoint(step, place.folder, place.object, digest)
            for old in sorted(self._steps())[:-KEPT]:
                self._remove(old)
        gather(None)

    def latest(self) -> tuple[int, ArtifactReader] | None:
        """The newest complete checkpoint, `(step, reader)`; None when there is none.

        Every rank calls, and gets the same.

        Raises:
            Tampered: it was changed.
            Stale: the control plane knows a newer one, or another one of the same step.
        """
        found: list[Any] = []
        if self.rank == 0:
            newest = self._newest()
            self._check_known(newest)
            found = [newest[0], newest[1].digest] if newest else []
            for step in self._steps():
                if not found or step > found[0]:
                    self._remove(step)
        found = gather(found)[0]
        if not found:
            return None
        step, digest = found
        return step, self.store.reader(replace(self._place(step), digest=digest))

    def newest_step(self) -> int:
        """Step of the newest complete checkpoint as it lies there.

        0 when there is none. Deletes nothing.
        """
        newest = self._newest()
        return newest[0] if newest else 0

    def _place(self, step: int) -> Artifact:
        if not 0 <= step <= LARGEST_STEP:
            raise InvalidInput(f"a checkpoint has a step from 0 to {LARGEST_STEP}, not {step}")
        name = f"step-{step:08d}"
        folder = f"{self.series.folder}/{name}"
        return replace(self.series, folder=folder, object=f"{self.series.object}/{name}", digest="")

    def _steps(self) -> list[int]:
        """Steps of all folders, complete or not, newest first."""
        path = self.store.path(self.series.folder)
        self.store.fs.invalidate_cache(path)
        try:
            found = self.store.fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        matches = (_STEP.fullmatch(str(name).rstrip("/").rpartition("/")[2]) for name in found)
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def _newest(self) -> tuple[int, ArtifactReader] | None:
        for step in self._steps():
            with contextlib.suppress(NotFound):
                return step, self.store.reader(self._place(step))
        return None

    def _check_known(self, newest: tuple[int, ArtifactReader] | None) -> None:
        known = self.resume
        if known is None or known.step == 0:
            return
        step, digest = (newest[0], newest[1].digest) if newest else (0, "")
        if step < known.step or (step == known.step and known.digest not in ("", digest)):
            raise Stale(
                f"the newest checkpoint in the store is step {step}, but step {known.step} was"
                " recorded: the storage was rolled back. Restore it, or start a new job.",
                object=self.series.object,
            )

    def _check_epoch(self) -> None:
        newest = self._newest()
        if newest is not None and newest[1].epoch > self.epoch:
            raise LeaseLost(
                f"epoch {newest[1].epoch} saves checkpoints of this job now;"
                f" epoch {self.epoch} must stop"
            )

    def _remove(self, step: int) -> None:
        path = self.store.path(self._place(step).folder)
        with contextlib.suppress(FileNotFoundError):
            self.store.fs.rm_file(f"{path}/{MANIFEST}")
        with contextlib.suppress(FileNotFoundError):
            for file in self.store.fs.ls(path, detail=False):
                self.store.fs.rm_file(file)
                if self.store.moved is not None:
                    self.store.moved()
            self.store.fs.rm(path, recursive=True)
