"""The checkpoints of a job in the object store: read, signed and deleted, each in its folder.

Ranks write them (`appliance.jobs.runtime.checkpoints`), each start in the folder of its epoch.
Rules kept here:
* what is put on record was seen to be whole, was sealed for its place and its epoch, and is signed
  beside its manifest; by the signature ranks know which of their checkpoints are not theirs to
  delete any more;
* only what an epoch saved that is over, and that is not on record, is deleted without a row.

Called by `services.work.checkpoint_tasks` and `services.agent.release`, in threads that may wait
for a store.
"""

from __future__ import annotations

from collections.abc import Collection

from appliance.control.services.data.artifacts import Version, sign_manifest
from appliance.control.store.objects import ObjectStore
from appliance.core.checkpoints import CheckpointPoint, epoch_of, step_of
from appliance.core.errors import Tampered
from appliance.crypto.artifacts import ArtifactReader
from appliance.crypto.folder import Folder
from appliance.crypto.signing import SigningKey


class CheckpointFolders:
    """Reads, signs and deletes checkpoints.

    Args:
        store: where they lie.
        signer: of this appliance.
    """

    def __init__(self, store: ObjectStore, signer: SigningKey) -> None:
        self._store = store
        self._signer = signer

    def points(self, series: Version) -> list[CheckpointPoint]:
        """The checkpoints of a series that have their manifest, newest first."""
        return sorted(
            (
                point
                for point, folder in self._folders(series.folder)
                if self._store.is_whole(folder)
            ),
            reverse=True,
        )

    def read(
        self, series: Version, point: CheckpointPoint, digest: str | None = None
    ) -> ArtifactReader:
        """A reader of a checkpoint, once it is seen to be whole.

        Raises:
            NotFound: it is not there, and no digest is known.
            Tampered: it is not whole, not what the digest says, or another epoch wrote it.
        """
        reader = ArtifactReader(
            self._store.filesystem,
            self._store.path(f"{series.folder}/{point.name}"),
            series.key,
            series.project,
            f"{series.uid}/{point.name}",
            digest=digest,
        )
        if point.epoch and reader.epoch != point.epoch:
            raise Tampered(
                f"epoch {reader.epoch} wrote the checkpoint in the folder of epoch {point.epoch}",
                object=series.uid,
            )
        return reader

    def is_whole(self, series: Version, point: CheckpointPoint) -> bool:
        """Whether a checkpoint has its manifest."""
        return self._store.is_whole(f"{series.folder}/{point.name}")

    def sign(self, series: Version, point: CheckpointPoint, digest: str) -> None:
        """Sign the manifest of a checkpoint that was read. Raises Tampered, OSError."""
        path = self._store.path(f"{series.folder}/{point.name}")
        folder = Folder(self._store.filesystem, path)
        sign_manifest(folder, self._signer, digest, f"{series.uid}/{point.name}")

    def delete(self, series_folder: str, point: CheckpointPoint) -> None:
        """Delete a checkpoint. Raises OSError; then it can be deleted again."""
        self._store.delete(f"{series_folder}/{point.name}")

    def delete_unknown(
        self, series: Version, before: int, known: Collection[CheckpointPoint]
    ) -> None:
        """Delete what epochs lower than `before` have saved, but what is known. Raises OSError."""
        for point, folder in self._folders(series.folder):
            if point.epoch < before and point not in known:
                self._store.delete(folder)

    def delete_unfinished(self, series: Version, last: int) -> None:
        """Delete what was never finished of epochs up to `last`, which is over. Raises OSError."""
        for point, folder in self._folders(series.folder):
            if point.epoch <= last and not self._store.is_whole(folder):
                self._store.delete(folder)

    def _folders(self, series_folder: str) -> list[tuple[CheckpointPoint, str]]:
        """The folders of checkpoints, complete or not."""
        found: list[tuple[CheckpointPoint, str]] = []
        for folder in self._store.folders(series_folder):
            epoch = epoch_of(folder.rpartition("/")[2])
            inner = [folder] if epoch is None else self._store.folders(folder)
            for each in inner:
                step = step_of(each.rpartition("/")[2])
                if step is not None:
                    found.append((CheckpointPoint(epoch or 0, step), each))
        return found
