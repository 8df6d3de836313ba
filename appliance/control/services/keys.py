"""Keys of projects and of artifact versions, as they are stored: wrapped, each for its own row.

The keyring's master key wraps one key per project; the project's key wraps one data key per
artifact version. Rules kept here:
* a wrapped key opens for the row it was made for and no other: project, version of the project's
  key, uid of the artifact version;
* keys leave this module only as return values; nothing is cached.

The attack: a row copied over another, so that one project's data opens for somebody else. Called by
the services that make, read or hand out artifacts, inside their transaction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from appliance.control.services.resources import missing
from appliance.control.store import tables
from appliance.control.store.database import Reading, Transaction
from appliance.core import names
from appliance.crypto.keys import Keyring, new_key, unwrap, wrap


@dataclass(frozen=True)
class DataKey:
    """A data key and how it is stored.

    Args:
        key: 32 bytes, secret.
        wrapped: the same under the project's key, for column `wrapped_key`.
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
                project=project, version=1, wrapped_key=wrapped, create_time=now
            )
        )

    def create_data_key(self, state: Reading, project: str, uid: str) -> DataKey:
        """A new data key for an artifact version, under the newest key of its project.

        Raises NotFound when there is no such project.
        """
        column = tables.project_key.c
        row = state.first(
            tables.project_key.select()
            .where(column.project == project)
            .order_by(column.version.desc())
            .limit(1)
        )
        if row is None:
            raise missing(names.project(project))
        kek = unwrap(
            self._keyring.master, row.wrapped_key, self._project_context(project, row.version)
        )
        key = new_key()
        wrapped = wrap(kek, key, _data_context(project, row.version, uid))
        return DataKey(key=key, wrapped=wrapped, key_version=row.version)

    def data_key(
        self, state: Reading, project: str, uid: str, key_version: int, wrapped: bytes
    ) -> bytes:
        """Open the data key of an artifact version. `Tampered` when a row was changed or moved."""
        column = tables.project_key.c
        row = state.first(
            tables.project_key.select().where(
                column.project == project, column.version == key_version
            )
        )
        if row is None:
            raise missing(names.project(project))
        kek = unwrap(
            self._keyring.master, row.wrapped_key, self._project_context(project, key_version)
        )
        return unwrap(kek, wrapped, _data_context(project, key_version, uid))

    def _project_context(self, project: str, version: int) -> dict[str, str | int]:
        return {
            "cluster": self._keyring.cluster_id,
            "key": "project",
            "project": project,
            "version": version,
        }


def _data_context(project: str, key_version: int, uid: str) -> dict[str, str | int]:
    return {"key": "data", "project": project, "version": key_version, "uid": uid}
