"""Checks that the files which hold what was acknowledged are still in their place.

A process goes on reading and writing a file that somebody has unlinked or moved away, and what it
acknowledges is gone with the process. Rules kept here:
* the state database and the keyring are the very files that were opened, by device and inode;
* the check is asked by the audit log before each write and each second: when it fails, no record is
  taken any more, so nothing is acknowledged.

The attack: taking the state or the keys away under a running control plane. The root key may be
taken away on purpose, once the control plane has started. Called by `opening`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from appliance.control.audit.growing_file import file_identity
from appliance.core.errors import Tampered


class Presence:
    """Remembers which files they are.

    Args:
        paths: of files that are there now.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._known = {path: _identity(path) for path in paths}

    def check(self) -> None:
        """Raise Tampered when one of them is gone or another file."""
        for path, known in self._known.items():
            if _identity(path) != known:
                raise Tampered(
                    f"{path.name} was removed or replaced while the control plane used it",
                    object=path.name,
                )


def _identity(path: Path) -> tuple[int, int] | None:
    found = file_identity(path)
    return None if found is None else (found.device, found.inode)
