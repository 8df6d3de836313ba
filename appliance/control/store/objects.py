"""Where sealed objects lie.

Rules kept here: the location is one fsspec URL; a folder is `<project>/<uid>` and is made from
checked ids alone, so nothing can point outside the root. Everything below the root is sealed; the
storage itself is not trusted.

Called by the services that make, read and delete artifacts, and by the node, which gets the folder
in its orders.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

import fsspec
from fsspec.core import url_to_fs

from appliance.core.errors import InvalidInput
from appliance.core.files import make_private_dir
from appliance.core.names import is_id, shown

LOCAL = frozenset({"file", "local"})


@dataclass(frozen=True)
class ObjectStore:
    """An open object store: `filesystem`, the path of its root there, and the URL it came from."""

    url: str
    filesystem: fsspec.AbstractFileSystem
    root: str

    def folder(self, project: str, uid: str) -> str:
        """Folder of an artifact version, relative to the root: `<project>/<uid>`."""
        for part in (project, uid):
            if not is_id(part):
                raise InvalidInput(f"{shown(part)} cannot be part of a folder")
        return f"{project}/{uid}"

    def path(self, folder: str) -> str:
        """Path of a folder in `filesystem`."""
        return f"{self.root}/{folder}"


def open_store(url: str) -> ObjectStore:
    """Open the store behind an fsspec URL such as `file:///var/lib/appliance/objects`.

    Raises InvalidInput when the URL names no known kind of storage, FailedPrecondition when a local
    folder is open to other users.
    """
    try:
        filesystem, root = url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise InvalidInput(f"{shown(url)} is not a storage location: {error}") from error
    if LOCAL.intersection(
        (filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol
    ):
        make_private_dir(Path(root))
    return ObjectStore(url, filesystem, root.rstrip("/"))


def new_uid() -> str:
    """A new random 128-bit identifier, hexadecimal."""
    return secrets.token_hex(16)
