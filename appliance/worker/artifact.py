"""Opens the sealed model of the orders. Called by `main` and by the loader of each rank."""

from __future__ import annotations

import fsspec

from appliance.crypto.artifacts import ArtifactReader
from appliance.worker.orders import Source


def open_model(objects: str, source: Source) -> ArtifactReader:
    """A reader of the model, its manifest checked.

    Args:
        objects: fsspec URL of the object store.
        source: where the model lies in it.

    Raises:
        NotFound, Tampered, Stale: as `ArtifactReader` does.
    """
    fs, root = fsspec.core.url_to_fs(objects)
    folder = f"{root.rstrip('/')}/{source.folder}"
    return ArtifactReader(
        fs, folder, source.key, source.project, source.object, digest=source.digest or None
    )
