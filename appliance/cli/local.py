"""An appliance on this machine: what its data directory says about its processes.

Called by `init`, `up`, `down` and the supervisor. The configuration files belong to the processes;
only addresses are read here.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from appliance.core.data_directory import PARTS, DataDirectory
from appliance.core.errors import FailedPrecondition
from appliance.core.files import full_disk_is_exhausted, make_private_dir, open_private
from appliance.core.identity import PrincipalKind

LOG_BYTES = 16 << 20


@dataclass(frozen=True)
class Program:
    """One process of the appliance.

    Attributes:
        name: `control`, `node` or `gateway`; its log is run/NAME.log.
        config: its configuration file.
        health: address of its health service.
        ca: CA certificate of that address; None when it is plain text on loopback.
        server: which kind of server answers there.
        listens: every address it listens on, with the setting that names it.
        vital: whether the appliance is of use only with it; a node may come later.
    """

    name: str
    config: Path
    health: str
    ca: Path | None
    server: PrincipalKind
    listens: tuple[tuple[str, str], ...]
    vital: bool = True


class Local:
    """A data directory made by `appliance init`."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.run = self.path / "run"
        self._lock = self.run / "supervisor.pid"

    def programs(self, *, node: bool = True) -> tuple[Program, ...]:
        """The processes, the control plane first; without its node when that is not wanted.

        Raises:
            NotFound: there is no appliance in the folder.
            FailedPrecondition: a part of it is missing, or a configuration file cannot be read.
        """
        wanted = [part for part in PARTS if node or not part.startswith("node/")]
        DataDirectory(self.path).check_complete(wanted)
        try:
            return (
                self._control(),
                *([self._node()] if node else []),
                self._gateway(),
            )
        except (KeyError, TypeError) as error:
            raise FailedPrecondition(
                f"an address is missing in the configuration below {self.path}: {error}"
            ) from error

    @property
    def ca(self) -> Path:
        """The CA certificate."""
        return self.path / "ca.pem"

    @property
    def api(self) -> str:
        """Address of the control plane for people and applications."""
        return self._control().health

    def log(self, name: str) -> Path:
        """Log of a process."""
        return self.run / f"{name}.log"

    @contextmanager
    def only_one(self) -> Iterator[None]:
        """Be the one that runs this appliance. Raises FailedPrecondition when there is another."""
        make_private_dir(self.run)
        with full_disk_is_exhausted(self._lock):
            descriptor = open_private(self._lock, os.O_RDWR | os.O_APPEND)
        with os.fdopen(descriptor, "a+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FailedPrecondition(
                    f"the appliance in {self.path} is already running: stop it with "
                    f"`appliance down --data-dir {self.path}`"
                ) from error
            with full_disk_is_exhausted(self._lock):
                file.truncate(0)
                # Past the buffer: what it holds would be written again when the file is closed.
                os.write(descriptor, str(os.getpid()).encode())
            yield
            file.truncate(0)

    def supervisor(self) -> int | None:
        """The process that runs this appliance; None when it does not run."""
        try:
            with self._lock.open("r", encoding="ascii") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            text = self._lock.read_text(encoding="ascii")
            return int(text) if text.isdecimal() else None
        return None

    def _control(self) -> Program:
        config, kind = self.path / "control.toml", PrincipalKind.CONTROL
        listen = self._toml(config)["listen"]
        listens = tuple((listen[key], f"listen.{key} in control.toml") for key in listen)
        return Program("control", config, listen["api"], self.ca, kind, listens)

    def _node(self) -> Program:
        config, kind = self.path / "node" / "node.toml", PrincipalKind.NODE
        node = self._toml(config)
        listens = tuple((node[key], f"{key} in node/node.toml") for key in ("health", "metrics"))
        return Program("node", config, node["health"], None, kind, listens, vital=False)

    def _gateway(self) -> Program:
        config, kind = self.path / "gateway" / "gateway.toml", PrincipalKind.GATEWAY
        gateway = self._toml(config)
        listen = gateway["listen"]
        listens = [(listen[key], f"listen.{key} in gateway/gateway.toml") for key in listen]
        listens.append((gateway["metrics"], "metrics in gateway/gateway.toml"))
        return Program("gateway", config, listen["grpc"], self.ca, kind, tuple(listens))

    def _toml(self, path: Path) -> dict[str, Any]:
        try:
            return tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise FailedPrecondition(f"{path} is not TOML: {error}") from error


def cut_log(path: Path) -> None:
    """Make a log that has grown large the one before, and begin it anew; others append to it.

    They hold it open, so it is copied and emptied: what they write between the two is lost. When
    there is no room for the copy it is emptied without.
    """
    before = path.with_suffix(".log.1")
    try:
        if path.stat().st_size <= LOG_BYTES:
            return
        kept = os.fdopen(open_private(before, os.O_WRONLY | os.O_TRUNC), "wb")
        with kept as new, path.open("rb") as old:
            shutil.copyfileobj(old, new)
    except FileNotFoundError:
        return
    except OSError:
        before.unlink(missing_ok=True)
    os.truncate(path, 0)


def log_file(path: Path) -> BinaryIO:
    """Open a log to append to; one that has grown large becomes `.log.1` first."""
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return os.fdopen(open_private(path, os.O_WRONLY | os.O_APPEND), "ab")
