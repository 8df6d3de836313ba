"""The checkpoints of a job: artifacts in `<folder>/e2/step-00000008`.

The attacks: storage is rolled back or changed so that training continues from other weights; a node
that lost its job writes over the checkpoints of the one that took it over. Rules kept here:
* every rank writes its own files; rank 0 writes the manifest last. A checkpoint without manifest is
  not there, so a crash at any moment leaves the one before usable;
* what goes away loses its manifest first, so half a deletion is never half a checkpoint;
* an epoch saves and deletes in its own folder alone, so one that is over harms nobody;
* what the control plane has put on record, and so signed, only the control plane deletes; of what
  it has not heard of yet, the newest `UNHEARD_KEPT` of this epoch are kept, however long it is
  away;
* a start goes on from the very checkpoint that the control plane names, by epoch, step and digest;
  only ranks that start again within an epoch look for the newest one, and only in its folder;
* `latest` is complete, authentic and the same on every rank; an altered one is an error, not a
  reason to go back quietly;
* nothing is unpickled: ranks exchange JSON, and what a kind stores is its own business (tensors and
  JSON).

Called by the kinds through `Context.checkpoints()`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from appliance.core.checkpoints import CheckpointPoint, epoch_folder, step_of
from appliance.core.errors import NotFound, Stale
from appliance.crypto.artifacts import (
    MANIFEST,
    SIGNATURE,
    ArtifactReader,
    ArtifactWriter,
    FileEntry,
    manifest_digest,
)
from appliance.crypto.store import Artifact, ArtifactStore
from appliance.jobs.runtime.gather import gather
from appliance.jobs.runtime.orders import Resume
from appliance.jobs.runtime.reporter import Reporter

UNHEARD_KEPT = 4


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
        resume: the checkpoint from which this epoch goes on.
    """

    store: ArtifactStore
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
            step: optimizer steps done.
            write: creates this rank's files.
            extra: numbers for the reader, kept in the clear in the manifest (rank 0's count).

        Raises:
            LeaseLost: the job must stop.
            Exhausted: no space is left; the checkpoint before is untouched.
        """
        self.fence()
        place = self._place(CheckpointPoint(self.epoch, step))
        if self.rank == 0:
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
            self._delete_unheard()
        gather(None)

    def latest(self) -> tuple[int, ArtifactReader] | None:
        """The checkpoint to go on from, `(step, reader)`; None when there is none.

        The newest one of this epoch, else the one that its start was told. Every rank calls, and
        gets the same.

        Raises:
            Tampered: it was changed.
            Stale: the one that was told is not there, or another one is in its place.
        """
        found: list[Any] = []
        if self.rank == 0:
            newest = self._newest()
            if newest is not None:
                found = [self.epoch, newest[0], newest[1].digest]
            elif self.resume is not None and self.resume.step:
                self._check_resume(self.resume)
                found = [self.resume.epoch, self.resume.step, self.resume.digest]
            for step in self._steps():
                if newest is None or step > newest[0]:
                    self._remove(step)
        found = gather(found)[0]
        if not found:
            return None
        epoch, step, digest = found
        place = self._place(CheckpointPoint(epoch, step))
        return step, self.store.reader(replace(place, digest=digest))

    def newest_step(self) -> int:
        """Step of the checkpoint to go on from.

        0 when there is none. Deletes nothing.
        """
        newest = self._newest()
        if newest is not None:
            return newest[0]
        return self.resume.step if self.resume is not None else 0

    def _place(self, point: CheckpointPoint) -> Artifact:
        folder, uid = f"{self.series.folder}/{point.name}", f"{self.series.object}/{point.name}"
        return replace(self.series, folder=folder, object=uid, digest="")

    def _steps(self) -> list[int]:
        """Steps of all folders of this epoch, complete or not, newest first."""
        path = self.store.path(f"{self.series.folder}/{epoch_folder(self.epoch)}")
        self.store.fs.invalidate_cache(path)
        try:
            found = self.store.fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        steps = (step_of(str(name).rstrip("/").rpartition("/")[2]) for name in found)
        return sorted((step for step in steps if step is not None), reverse=True)

    def _delete_unheard(self) -> None:
        """Delete what is not on record, but the newest `UNHEARD_KEPT`."""
        unheard = [step for step in self._steps() if not self._is_on_record(step)]
        for step in unheard[UNHEARD_KEPT:]:
            # Looked at again at the last moment: it may have come on record since.
            if not self._is_on_record(step):
                self._remove(step)

    def _is_on_record(self, step: int) -> bool:
        """Whether the control plane has signed a checkpoint; by the list of its folder.

        What is asked of a single file a network file system may answer from memory.
        """
        path = self.store.path(self._place(CheckpointPoint(self.epoch, step)).folder)
        self.store.fs.invalidate_cache(path)
        try:
            names = self.store.fs.ls(path, detail=False)
        except FileNotFoundError:
            return False
        return any(str(name).rpartition("/")[2] == SIGNATURE for name in names)

    def _newest(self) -> tuple[int, ArtifactReader] | None:
        for step in self._steps():
            with contextlib.suppress(NotFound):
                place = self._place(CheckpointPoint(self.epoch, step))
                return step, self.store.reader(place)
        return None

    def _check_resume(self, known: Resume) -> None:
        """Raise Stale unless the checkpoint that this epoch goes on from is there as it was."""
        place = self._place(CheckpointPoint(known.epoch, known.step))
        digest = ""
        with contextlib.suppress(NotFound):
            digest = self.store.reader(place).digest
        if digest != known.digest:
            raise Stale(
                f"the checkpoint of step {known.step} that was recorded is not in the store: it was"
                " rolled back. Restore it, or start a new job.",
                object=self.series.object,
            )

    def _remove(self, step: int) -> None:
        path = self.store.path(self._place(CheckpointPoint(self.epoch, step)).folder)
        with contextlib.suppress(FileNotFoundError):
            self.store.fs.rm_file(f"{path}/{MANIFEST}")
        with contextlib.suppress(FileNotFoundError):
            for file in self.store.fs.ls(path, detail=False):
                self.store.fs.rm_file(file)
                if self.store.moved is not None:
                    self.store.moved()
            self.store.fs.rm(path, recursive=True)
