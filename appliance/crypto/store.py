"""The object store as processes see it that are told in their orders what to open there.

Rules kept here:
* a folder that comes in orders lies below the root of the store, whatever it says;
* an artifact is opened with the digest on record: changed or rolled back storage is refused before
  a byte is used.

The attack: a folder such as `../other` or `/etc`, which would make a process read or write outside
the store. Called by jobs and by workers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import fsspec
from fsspec import AbstractFileSystem

from appliance.core.errors import InvalidInput
from appliance.crypto.artifacts import ArtifactReader
from appliance.crypto.folder import Moved


@dataclass(frozen=True)
class Artifact:
    """One sealed artifact that a process was given to read or to write.

    Attributes:
        folder: relative to the object store.
        object: id of the object that the files belong to.
        project: id of the project.
        key: its data key, 32 bytes.
        digest: SHA-256 (hex) of the manifest on record; empty when none is, as for outputs.
    """

    folder: str
    object: str
    project: str
    key: bytes = field(repr=False)
    digest: str = ""


@dataclass(frozen=True)
class ArtifactStore:
    """A file system and the folder on it under which all artifacts lie.

    Attributes:
        fs: the file system.
        root: the folder.
        moved: called whenever bytes of a file are read or written; None: by nobody.
    """

    fs: AbstractFileSystem
    root: str
    moved: Moved | None = None

    @classmethod
    def at(cls, url: str, moved: Moved | None = None) -> ArtifactStore:
        """The store behind an fsspec URL such as `file:///srv/objects`."""
        try:
            fs, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise InvalidInput(f"the object store {url} cannot be used: {error}") from error
        return cls(fs, root.rstrip("/"), moved)

    def path(self, folder: str) -> str:
        """Path on the file system of a folder of the store; `InvalidInput` for one outside it."""
        parts = folder.split("/")
        if not all(parts) or "." in parts or ".." in parts:
            raise InvalidInput(f"{folder!r} is not a folder of the object store")
        return f"{self.root}/{folder}"

    def reader(self, artifact: Artifact) -> ArtifactReader:
        """Open an artifact of the digest on record. Raises NotFound, Tampered, Stale."""
        return ArtifactReader(
            self.fs,
            self.path(artifact.folder),
            artifact.key,
            artifact.project,
            artifact.object,
            digest=artifact.digest or None,
            moved=self.moved,
        )
