"""Where the parts of one upload lie, sealed under the key of the version they become.

Parts of a dataset are files of that version already, so that a commit moves no byte. Those of a
model are pieces of files and lie in a folder of the upload, bound to its uid, until the commit has
made the files.

Called by `services.data.upload_parts` and `services.data.upload_tasks`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select

from appliance.control.services.data import upload_rows
from appliance.control.services.data.artifacts import Artifacts, Version
from appliance.control.services.data.documents import part_file
from appliance.control.services.data.upload_ids import PartsThere
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading
from appliance.control.store.objects import ObjectStore
from appliance.core.errors import NotFound
from appliance.crypto.artifacts import ArtifactWriter
from appliance.crypto.folder import Folder
from appliance.crypto.sealed_place import SealedPlace
from appliance.crypto.sealed_reader import SealedReader


class UploadFolder:
    """The parts of an upload.

    Args:
        database: to read rows of parts.
        store: where they lie.
        row: of the upload.
        version: pending, with its key.
    """

    def __init__(
        self, database: Database, store: ObjectStore, row: Row[Any], version: Version
    ) -> None:
        self.version = version
        self._database = database
        self._store = store
        self._uid = row.uid
        self._object = row.uid if row.folder else version.uid
        self._path = store.path(row.folder or version.folder)

    @classmethod
    def of(
        cls, state: Reading, database: Database, artifacts: Artifacts, row: Row[Any]
    ) -> UploadFolder:
        """The folder of an upload that is under way. Raises NotFound when its version is gone."""
        mine = tables.artifact_version.c.uid == row.version
        found = state.first(select(tables.artifact_version).where(mine))
        if found is None:
            raise NotFound(f"{upload_rows.name_of(row)} is over", name=upload_rows.name_of(row))
        return cls(database, artifacts.store, row, artifacts.read(state, found))

    def writer(self) -> ArtifactWriter:
        """Writes parts. Raises Unavailable when the store is not there."""
        self._store.check_mounted()
        version = self.version
        return ArtifactWriter(
            self._store.filesystem, self._path, version.key, version.project, self._object
        )

    def check_free(self) -> None:
        """Raise StoreFull when the store has no space for uploads."""
        self._store.check_free()

    def remove(self, number: int) -> None:
        """Delete the file of a part, if it is there."""
        Folder(self._store.filesystem, self._path).remove(part_file(number))

    def sizes(self) -> dict[str, int | None]:
        """Bytes of each file that is there."""
        return Folder(self._store.filesystem, self._path).list()

    def open(self, part: Row[Any]) -> SealedReader:
        """Read a part that is there. Raises Tampered, Stale."""
        place = SealedPlace(self.version.project, self._object, part.file)
        try:
            raw = Folder(self._store.filesystem, self._path).open(part.file)
        except NotFound as error:
            # Without the path, which is the server's own.
            raise place.tampered("it is missing") from error
        try:
            return SealedReader(raw, self.version.key, place, expect_tag=part.tag, closes_raw=True)
        except BaseException:
            raw.close()
            raise

    def there(self) -> PartsThere:
        """The parts that are there, for the comparison of ids."""
        return PartsThere(self._uid, self.version.key, self._documents, self._read)

    def _documents(self) -> dict[int, int]:
        with self._database.read() as state:
            rows = upload_rows.parts_of(state, self._uid)
            return {row.number: row.documents for row in rows}

    def _read(self, number: int) -> SealedReader:
        with self._database.read() as state:
            row = upload_rows.part_of(state, self._uid, number)
        if row is None:
            raise NotFound(f"part {number} is gone")
        return self.open(row)
