"""What lies where in a data directory, and what it means when a part of it is lost.

Rules kept here:
* `init` makes all of a data directory or nothing: where some part of an appliance is and another is
  not, something was lost. Such a folder is never said to be empty, and never made anew: without its
  root key what lies there cannot be read, and a new one would be put in the place of the copy;
* each loss is one sentence: what is missing, what it was for, what to do.

Called by the control plane at its start, by `init` and by `up`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.core.errors import AlreadyExists, FailedPrecondition, NotFound

_BACKUP = "put it back from your newest backup"
_STATE = "put back `state.db` and `audit` of your newest backup, both of the same one"

PARTS: Mapping[str, str] = {
    "root.key": (
        "without it nothing in this folder can be decrypted, and it cannot be made again: put it "
        "back from your copy, with mode 0600"
    ),
    "keyring.sealed": f"it holds every other key, sealed under root.key: {_BACKUP}",
    "state.db": f"it holds the people, the names and the wrapped keys: {_STATE}",
    "audit": f"it holds the record of what was done, without which nothing goes on: {_STATE}",
    "control.toml": f"it says how the control plane is configured: {_BACKUP}",
    "gateway/gateway.toml": f"it says how the gateway is configured: {_BACKUP}",
    "node/node.toml": (
        f"it says how the node is configured: {_BACKUP}, or start without this node "
        "(`appliance up --no-node`)"
    ),
}
"""What cannot be made again, in the order in which it is missed; and what to do about it."""
KEPT = ("root.key", "keyring.sealed", "state.db", "audit")
"""What the control plane needs beside its configuration."""


@dataclass(frozen=True)
class DataDirectory:
    """What lies where in a data directory."""

    path: Path

    @property
    def root_key(self) -> Path:
        """The root key; whoever has it and the rest of the directory has everything."""
        return self.path / "root.key"

    @property
    def keyring(self) -> Path:
        """The keyring, sealed under the root key."""
        return self.path / "keyring.sealed"

    @property
    def authority(self) -> Path:
        """Certificate of the appliance's authority, PEM; not secret."""
        return self.path / "ca.pem"

    @property
    def state(self) -> Path:
        """The state database."""
        return self.path / "state.db"

    @property
    def config(self) -> Path:
        """The configuration of the control plane."""
        return self.path / "control.toml"

    @property
    def audit(self) -> Path:
        """Folder of the audit log."""
        return self.path / "audit"

    @property
    def objects(self) -> Path:
        """Folder of sealed objects, unless they lie elsewhere."""
        return self.path / "objects"

    @property
    def uploads(self) -> Path:
        """Folder of what is remembered of documents on their way in; made anew when it is lost."""
        return self.path / "uploads"

    @property
    def gateway(self) -> Path:
        """Folder of the gateway on this server."""
        return self.path / "gateway"

    @property
    def node(self) -> Path:
        """Folder of the node on this server."""
        return self.path / "node"

    @property
    def run(self) -> Path:
        """Folder of logs and process ids."""
        return self.path / "run"

    def check_complete(self, parts: Iterable[str] = PARTS) -> None:
        """Raise when one of these parts is missing.

        Raises:
            NotFound: there is no appliance here at all.
            FailedPrecondition: there is one that has lost something.
        """
        lost = [part for part in parts if part in self._missing()]
        if lost and len(self._missing()) == len(PARTS):
            raise NotFound(
                f"{self.path} holds no appliance: make one with `appliance init --data-dir "
                f"{self.path} --admin NAME`",
                path=self.path,
            )
        if lost:
            raise self._lost(lost)

    def check_unused(self) -> None:
        """Raise when no new appliance can be made here.

        Raises:
            AlreadyExists: there is an appliance.
            FailedPrecondition: there is one that has lost something, or there is something else.
        """
        missing = self._missing()
        if not missing:
            raise AlreadyExists(
                f"{self.path} already holds an appliance, which was left as it is: start it with "
                "`appliance up`, or choose another data directory",
                path=self.path,
            )
        if len(missing) < len(PARTS):
            raise self._lost(missing)
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise FailedPrecondition(
                f"{self.path} is not an empty folder: choose another data directory",
                path=self.path,
            )

    def _missing(self) -> list[str]:
        return [part for part in PARTS if not (self.path / part).exists()]

    def _lost(self, lost: list[str]) -> FailedPrecondition:
        first, *others = lost
        too = f" ({', '.join(others)} too)" if others else ""
        return FailedPrecondition(
            f"{self.path} holds an appliance whose {first} is missing{too}; {PARTS[first]}",
            path=self.path / first,
        )
