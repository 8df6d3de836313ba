"""Keys of projects and of artifact versions, as they are stored: wrapped, each for its own row.

The keyring's master key wraps one key per project; the project's key wraps one data key per
artifact version, and a key derived from it seals small values of the project in the database. Rules
kept here:
* a wrapped key and a sealed value open for the row they were made for and no other: project,
  version of the project's key, uid of the artifact version;
* keys leave this module only as return values; nothing is cached;
* a wrapped key that was deleted is in no file any more once the log of writes was emptied. SQLite
  overwrites what is deleted, but when it moves a short row to another page, it leaves a copy in the
  room that becomes free there (measured: one of a thousand). What does not fit into a row's own
  page lies on pages of its own, which are never copied, and overwritten when they are freed. So a
  wrapped key is stored behind `PAD`, which fills more than a page.

The attack: a row copied over another, so that one project's data opens for somebody else. Called by
the services that make, read or hand out artifacts, inside their transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import select

from appliance.control.services.common.resources import missing
from appliance.control.store import tables
from appliance.control.store.database import Reading, Transaction
from appliance.core import names
from appliance.core.errors import NotFound
from appliance.crypto.keys import Keyring, derive_key, new_key, unwrap, wrap
from appliance.crypto.sealed_values import open_field, seal_field

PAD = b"." * 4096
"""A page of SQLite has 4096 bytes: no byte behind this is in a row's own page."""
_FIELDS = "fields of a project"


@dataclass(frozen=True)
class DataKey:
    """A data key and how it is stored.

    Args:
        key: 32 bytes, secret.
        wrapped: the same under the project's key, for `Keys.keep`.
        key_version: version of the project's key, for column `key_version`.
    """

    key: bytes = field(repr=False)
    wrapped: bytes = field(repr=False)
    key_version: int


class Keys:
    """Makes, wraps and opens keys.

    Args:
        keyring: the open keyring.
    """

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def create_project_key(self, transaction: Transaction, project: str, now: datetime) -> None:
        """Make and store version 1 of a new project's key."""
        wrapped = wrap(self._keyring.master, new_key(), self._project_context(project, 1))
        transaction.run(
            tables.project_key.insert().values(
                project=project, version=1, wrapped_key=PAD + wrapped, create_time=now
            )
        )

    def create_data_key(self, state: Reading, project: str, uid: str) -> DataKey:
        """A new data key for an artifact version, under the newest key of its project.

        Raises NotFound when there is no such project.
        """
        version, kek = self._project_key(state, project)
        key = new_key()
        wrapped = wrap(kek, key, _data_context(project, version, uid))
        return DataKey(key=key, wrapped=wrapped, key_version=version)

    def keep(self, transaction: Transaction, uid: str, data_key: DataKey) -> None:
        """Store the data key of an artifact version, whose row is there."""
        values = {"version": uid, "wrapped_key": PAD + data_key.wrapped}
        transaction.run(tables.version_key.insert().values(**values))

    def data_key(self, state: Reading, project: str, uid: str, key_version: int) -> bytes:
        """Open the data key of an artifact version.

        Raises NotFound when it was deleted, Tampered when a row was changed or moved.
        """
        _, kek = self._project_key(state, project, key_version)
        column = tables.version_key.c
        stored = state.value(select(column.wrapped_key).where(column.version == uid))
        if stored is None:
            raise NotFound("this version was deleted, and its key with it", object=uid)
        return unwrap(kek, _wrapped(stored), _data_context(project, key_version, uid))

    def seal(
        self, state: Reading, project: str, data: bytes, place: Mapping[str, str | int]
    ) -> tuple[int, bytes]:
        """Seal a small value of a project for the row it will stand in.

        Returns the version of the project's key, and the sealed value. Raises NotFound.
        """
        version, kek = self._project_key(state, project)
        return version, seal_field(data, derive_key(kek, _FIELDS), place)

    def open(
        self,
        state: Reading,
        project: str,
        key_version: int,
        sealed: bytes,
        place: Mapping[str, str | int],
    ) -> bytes:
        """Open what `seal` made. `Tampered` when it was changed or moved."""
        _, kek = self._project_key(state, project, key_version)
        return open_field(sealed, derive_key(kek, _FIELDS), place)

    def _project_key(
        self, state: Reading, project: str, version: int | None = None
    ) -> tuple[int, bytes]:
        """Version and key of a project: of the newest unless one is named. Raises NotFound."""
        column = tables.project_key.c
        wanted = tables.project_key.select().where(column.project == project)
        if version is not None:
            wanted = wanted.where(column.version == version)
        row = state.first(wanted.order_by(column.version.desc()).limit(1))
        if row is None:
            raise missing(names.project(project))
        context = self._project_context(project, row.version)
        return row.version, unwrap(self._keyring.master, _wrapped(row.wrapped_key), context)

    def _project_context(self, project: str, version: int) -> dict[str, str | int]:
        return {
            "cluster": self._keyring.cluster_id,
            "key": "project",
            "project": project,
            "version": version,
        }


def _wrapped(stored: bytes) -> bytes:
    """What was stored behind the padding; `unwrap` refuses what is no key."""
    return stored.removeprefix(PAD)


def _data_context(project: str, key_version: int, uid: str) -> dict[str, str | int]:
    return {"key": "data", "project": project, "version": key_version, "uid": uid}
