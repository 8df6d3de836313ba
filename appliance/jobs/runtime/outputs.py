"""The sealed artifacts a job makes.

Rule kept here: an output begins to exist with its manifest, which is written last, and is reported
after that.

Called by `Context`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from appliance.crypto.artifacts import ArtifactWriter, FileEntry, manifest_digest
from appliance.crypto.store import Artifact, ArtifactStore
from appliance.jobs.runtime.gather import gather
from appliance.jobs.runtime.reporter import Reporter


class OutputWriter(ArtifactWriter):
    """Writes one output of a job; `finish` also reports it.

    Args:
        store: where it goes.
        artifact: folder, identity and key.
        slot: which output of the job it is.
        epoch: of the lease.
        report: of this rank.
        fence: asked before the manifest is written; raises LeaseLost.
    """

    def __init__(  # noqa: PLR0913  # what a rank is, named at the one call
        self,
        store: ArtifactStore,
        artifact: Artifact,
        *,
        slot: str,
        epoch: int,
        report: Reporter,
        fence: Callable[[], None],
    ) -> None:
        folder = store.path(artifact.folder)
        super().__init__(
            store.fs,
            folder,
            artifact.key,
            artifact.project,
            artifact.object,
            epoch=epoch,
            moved=store.moved,
        )
        self._slot = slot
        self._place = artifact.folder
        self._report = report
        self._fence = fence

    def finish(self, extra: Mapping[str, Any] | None = None) -> bytes:
        """Write the manifest and report the output.

        `extra` becomes facts of its resource (in the clear, small).
        """
        self._fence()
        manifest = super().finish(extra)
        digest = manifest_digest(manifest)
        self._report.output(self._slot, self._place, digest, extra or {})
        return manifest

    def finish_together(self, rank: int, extra: Mapping[str, Any] | None = None) -> None:
        """Finish an output of which every rank has written files.

        Every rank calls; returns when it is complete.
        """
        others = gather([entry.as_json() for entry in self.entries()])
        if rank == 0:
            for entries in others[1:]:
                self.adopt(map(FileEntry.from_json, entries))
            self.finish(extra)
        gather(None)
