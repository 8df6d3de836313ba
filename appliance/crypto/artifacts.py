"""Artifacts: datasets, tokenizers, checkpoints and models, each a folder of sealed files.

One writer and one reader for all of them; `manifest.json` says which files belong to the artifact.

The attack: somebody with write access to the storage deletes, adds, renames, swaps or rolls back
files or whole folders, or mixes the files of two checkpoints. Rules kept here:
* a file appears under its name when it is complete and durable; the manifest appears last, so an
  artifact without one is not there;
* the reader checks the manifest, its digest where the database knows it, and that the folder holds
  exactly the files of the manifest, before it opens any; every file must be the very writing that
  the manifest names, with as much in it as is said there: the writer of an artifact may be a job
  that was taken over, and sizes are what readers of it bound;
* a file is read whole up to 64 MiB, and otherwise as a stream;
* a writer of an older epoch changes nothing in what a newer one finished.

Called by the control plane (upload, import, download), by jobs and by workers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fsspec import AbstractFileSystem

from appliance.core.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidInput,
    LeaseLost,
    NotFound,
    Stale,
    Tampered,
)
from appliance.crypto.floe import check_key
from appliance.crypto.folder import PARTIAL, Folder, Moved, NewFile
from appliance.crypto.manifest import (
    MAX_MANIFEST,
    FileEntry,
    Manifest,
    check_file_name,
    manifest_digest,
    tampered,
)
from appliance.crypto.sealed_place import SealedPlace
from appliance.crypto.sealed_reader import SealedReader
from appliance.crypto.sealed_writer import SealedWriter

__all__ = ["ArtifactReader", "ArtifactWriter", "FileEntry", "manifest_digest"]

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
"""Ed25519 signature of the manifest, put beside it by the control plane when it registers it."""
READ_BYTES = 8 << 20
MAX_WHOLE = 64 << 20
"""Bytes of a file that is read whole: what a model may bring beside its weights."""

Fence = Callable[[], None]
FileEnd = Callable[[str, FileEntry | None], None]
"""Told the name of a file that ended: with its entry, or None when it was given up."""


class ArtifactWriter:
    """Writes one artifact, alone or together with writers of other files of it elsewhere.

    Several processes may each have one for the same folder; one of them adopts the entries of the
    others and finishes. Nothing is there for readers before `finish`.

    Args:
        fs: an fsspec file system.
        folder: path of the artifact's folder on it.
        key: the data key of the artifact version.
        project: id of the project.
        object: id of the object, such as `<uid>` or `<uid>/step-00000008`.
        epoch: of the job that writes; an older one changes nothing that a newer one finished.
        moved: called whenever bytes are written.
    """

    def __init__(  # noqa: PLR0913  # where it lies, what opens it, what it is
        self,
        fs: AbstractFileSystem,
        folder: str,
        key: bytes,
        project: str,
        object: str,  # noqa: A002  # the word of the format and of the errors
        *,
        epoch: int = 0,
        moved: Moved | None = None,
    ) -> None:
        check_key(key)
        self.project = project
        self.object = object
        self.epoch = epoch
        self._folder = Folder(fs, folder, moved)
        self._key = key
        self._entries: dict[str, FileEntry] = {}
        self._open: set[str] = set()

    def create(self, file: str) -> SealedWriter:
        """Begin a file; a context manager.

        The file gets its name when the block ends well, or not at all.

        Raises:
            AlreadyExists: this writer has such a file.
            InvalidInput: it is no plain name.
            LeaseLost: a newer epoch finished this artifact; also raised when the block ends.
            Exhausted: no space is left; also raised by writing and when the block ends.
        """
        if file in {MANIFEST, SIGNATURE} or file in self._entries or file in self._open:
            raise AlreadyExists(
                f"The artifact {self.object} already has a file {file}.", object=self.object
            )
        place = SealedPlace(self.project, self.object, check_file_name(file))
        self._check_epoch()
        new = self._folder.create(file)
        try:
            writer = _ArtifactFile(new, self._key, place, self._check_epoch, self._note_closed)
        except BaseException:
            new.discard()
            raise
        self._open.add(file)
        return writer

    def write_json(self, file: str, value: object) -> None:
        """Write a value as one JSON file; `InvalidInput` for what JSON cannot hold, such as NaN."""
        try:
            data = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"{file} of {self.object} cannot be written as JSON: {error}."
            ) from error
        with self.create(file) as writer:
            writer.write(data)

    def adopt(self, entries: Iterable[FileEntry]) -> None:
        """Take in files that other writers of this artifact made; its own may be among them.

        Raises:
            AlreadyExists: two different files have one name.
        """
        for entry in entries:
            known = self._entries.get(entry.file, entry)
            if known != entry or entry.file in self._open or entry.file == MANIFEST:
                raise AlreadyExists(
                    f"Two writers of the artifact {self.object} made a file {entry.file}.",
                    object=self.object,
                )
            self._entries[entry.file] = entry

    def entries(self) -> list[FileEntry]:
        """The finished files, those adopted included, by name."""
        return [self._entries[file] for file in sorted(self._entries)]

    def finish(self, extra: Mapping[str, Any] | None = None) -> bytes:
        """Write the manifest, with which the artifact begins to exist; returns its bytes.

        Files in the folder that are not part of the artifact, which a broken earlier attempt left,
        are deleted first.

        Args:
            extra: numbers and ids for readers; kept in the clear, so nothing that a user wrote.

        Raises:
            FailedPrecondition: a file is still open, has disappeared, or there is none at all.
            LeaseLost: a newer epoch finished this artifact.
        """
        if self._open or not self._entries:
            what = f"{', '.join(sorted(self._open))} still open" if self._open else "no files"
            raise FailedPrecondition(f"The artifact {self.object} cannot be finished with {what}.")
        self._check_epoch()
        self._check_folder()
        files = tuple(self.entries())
        content = Manifest(self.project, self.object, self.epoch, files, extra or {})
        manifest = content.encode(self._key)
        new = self._folder.create(MANIFEST)
        try:
            new.write(manifest)
            new.commit()
        except BaseException:
            new.discard()
            raise
        return manifest

    def _note_closed(self, file: str, entry: FileEntry | None) -> None:
        """A file was closed, and has an entry, or was given up."""
        self._open.discard(file)
        if entry is not None:
            self._entries[file] = entry

    def _check_folder(self) -> None:
        """Make sure that the folder holds the files of the artifact and nothing else."""
        found = self._folder.list()
        for entry in self.entries():
            if found.get(entry.file) != entry.sealed_size:
                raise FailedPrecondition(
                    f"The file {entry.file} of the artifact {self.object} is not there whole;"
                    " write it again."
                )
        for name in found:
            if name in self._entries or name == MANIFEST:
                continue
            try:
                self._folder.remove(name)
            except OSError as error:
                raise FailedPrecondition(
                    f"{name} does not belong into {self._folder} and cannot be deleted: {error}."
                    " Delete it, then repeat."
                ) from error

    def _check_epoch(self) -> None:
        try:
            raw = _read_manifest(self._folder)
            epoch = Manifest.decode(raw, self._key, self.project, self.object).epoch
        except (NotFound, Tampered):
            # What is not an authentic manifest of this artifact has no epoch, and is replaced.
            return
        if epoch > self.epoch:
            raise LeaseLost(
                f"The artifact {self.object} was finished by epoch {epoch};"
                f" epoch {self.epoch} must stop.",
                object=self.object,
            )


class _ArtifactFile(SealedWriter):
    """A sealed file that takes its name when it is closed."""

    def __init__(
        self, new: NewFile, key: bytes, place: SealedPlace, fence: Fence, on_end: FileEnd
    ) -> None:
        self._new = new
        self._fence = fence
        self._on_end = on_end
        self._done = False
        super().__init__(new, key, place)

    def close(self) -> None:
        """Finish, make durable, rename, and enter the file in the artifact."""
        if self._done:
            return
        try:
            super().close()
            self._fence()
            self._new.commit()
        except BaseException:
            self.abort()
            raise
        self._done = True
        file = self.place.file
        self._on_end(file, FileEntry(file, self.plain_size, self.sealed_size, self.tag))

    def abort(self) -> None:
        """Drop the file."""
        if self._done:
            return
        self._done = True
        super().abort()
        self._on_end(self.place.file, None)
        self._new.discard()


class ArtifactReader:
    """Reads one artifact, after its manifest and the list of its files were checked.

    Args:
        fs: an fsspec file system.
        folder: path of the artifact's folder on it.
        key: the data key of the artifact version.
        project: id of the project that the caller expects.
        object: id of the object that the caller expects.
        digest: `manifest_digest` on record; None when any authentic manifest will do.
        moved: called whenever bytes are read.

    Raises:
        NotFound: there is no manifest, so no complete artifact.
        Tampered: the manifest or the list of files is not what was written, or a manifest on record
            is gone.
        Stale: the manifest is authentic but not the one on record.
    """

    def __init__(  # noqa: PLR0913  # where it lies, what opens it, what it is
        self,
        fs: AbstractFileSystem,
        folder: str,
        key: bytes,
        project: str,
        object: str,  # noqa: A002  # the word of the format and of the errors
        *,
        digest: str | None = None,
        moved: Moved | None = None,
    ) -> None:
        check_key(key)
        self.project = project
        self.object = object
        self._folder = Folder(fs, folder, moved)
        self._key = key
        try:
            raw = _read_manifest(self._folder)
        except NotFound as error:
            if digest is None:
                raise
            raise tampered(project, object, "its manifest is gone") from error
        self._manifest = Manifest.decode(raw, key, project, object)
        self.digest = manifest_digest(raw)
        if digest is not None and digest != self.digest:
            raise Stale(
                f"The artifact {object} of project {project} is intact but is not the version on"
                " record: the storage was rolled back. Restore the recorded version from a backup.",
                project=project,
                object=object,
            )
        self._entries = {entry.file: entry for entry in self._manifest.files}
        self._check_folder()

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as JSON, without its `mac`."""
        return self._manifest.document()

    @property
    def epoch(self) -> int:
        """Epoch of the job that wrote the artifact."""
        return self._manifest.epoch

    @property
    def extra(self) -> dict[str, Any]:
        """What the writer gave to `finish`."""
        return dict(self._manifest.extra)

    def files(self) -> list[str]:
        """Names of the files, sorted."""
        return sorted(self._entries)

    def entry(self, file: str) -> FileEntry:
        """Sizes and tag of a file; `NotFound` when the artifact has no such file."""
        try:
            return self._entries[file]
        except KeyError as error:
            raise NotFound(
                f"The artifact {self.object} has no file {file}.", object=self.object
            ) from error

    def open(self, file: str) -> SealedReader:
        """Open a file for reading from anywhere in it; use it as a context manager."""
        entry = self.entry(file)
        try:
            raw = self._folder.open(file)
        except NotFound as error:
            raise tampered(self.project, self.object, f"the file {file} is missing") from error
        place = SealedPlace(self.project, self.object, file)
        try:
            reader = SealedReader(raw, self._key, place, expect_tag=entry.tag, closes_raw=True)
        except BaseException:
            raw.close()
            raise
        if reader.size != entry.plain_size:
            reader.close()
            why = f"the file {file} has {reader.size} bytes, not the {entry.plain_size} said"
            raise tampered(self.project, self.object, why)
        return reader

    def read_through(self, going: Callable[[], None] = lambda: None) -> None:
        """Read all of every file, so that every byte is proved, and keep nothing.

        Args:
            going: called between parts of some MiB; what it raises ends the reading.

        Raises Tampered, NotFound for a file that is gone meanwhile.
        """
        for file in self.files():
            with self.open(file) as reader:
                while reader.read(READ_BYTES):
                    going()

    def read_bytes(self, file: str) -> bytes:
        """The whole of a file. Raises InvalidInput for one of more than 64 MiB."""
        with self.open(file) as reader:
            if reader.size > MAX_WHOLE:
                raise InvalidInput(f"{file} has {reader.size} bytes, {MAX_WHOLE} are allowed")
            return reader.read()

    def read_json(self, file: str) -> Any:  # noqa: ANN401  # whatever JSON holds
        """The value of a JSON file."""
        return json.loads(self.read_bytes(file))

    def _check_folder(self) -> None:
        found = {n: size for n, size in self._folder.list().items() if not PARTIAL.fullmatch(n)}
        found.pop(MANIFEST, None)
        found.pop(SIGNATURE, None)
        for name, size in sorted(found.items()):
            if name not in self._entries:
                raise tampered(self.project, self.object, f"it has a file too many, {name}")
            if size != self._entries[name].sealed_size:
                raise tampered(self.project, self.object, f"the file {name} has another size")
        missing = sorted(set(self._entries) - set(found))
        if missing:
            raise tampered(self.project, self.object, f"the file {missing[0]} is missing")


def _read_manifest(folder: Folder) -> bytes:
    parts = []
    left = MAX_MANIFEST + 1
    with folder.open(MANIFEST) as file:
        # An unbuffered file may give less than it is asked for.
        while left and (part := file.read(left)):
            parts.append(part)
            left -= len(part)
    return b"".join(parts)
