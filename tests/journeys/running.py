"""A real appliance on this machine, brought up by the command, and what it holds.

People have terminals of the demo's kind: each a home of its own, nothing but the `appliance`
command. What the appliance holds is read twice per refusal, and therefore through the client.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyotp

from appliance.cli.local import Local
from appliance.client.connection import Connection
from appliance.client.methods import find
from appliance.client.pages import all_pages
from appliance.client.profiles import Profiles
from appliance.core.process_tree import descendants
from deploy.demo.terminal import Terminal
from tests.fakes.gang import ROOT
from tests.fakes.watchdog import loop_watchdog

PROGRAM = Path(sys.executable).with_name("appliance")
WATCHDOG = ROOT / "tests/fakes/watchdog"
PROJECT = "demo"
DEVICES = 4
MOMENT = 0.2
_LISTS = (
    ("ProjectService.ListProjects", "projects", ""),
    ("UserService.ListUsers", "users", ""),
    ("BindingService.ListBindings", "bindings", "scope"),
    ("DatasetService.ListDatasets", "datasets", "parent"),
    ("TokenizerService.ListTokenizers", "tokenizers", "parent"),
    ("ModelService.ListModels", "models", "parent"),
    ("JobService.ListJobs", "jobs", "parent"),
    ("EndpointService.ListEndpoints", "endpoints", "parent"),
)
Done = subprocess.CompletedProcess[str]


@dataclass
class Appliance:
    """One appliance that is up; `alice` administrates it and is logged in."""

    home: Path
    data: Path
    server: str
    alice: Terminal
    password: str = field(repr=False)
    secret: str = field(default="", repr=False)
    surroundings: Mapping[str, str] = field(default_factory=dict)

    @property
    def objects(self) -> Path:
        return self.data / "objects"

    @property
    def process_ids(self) -> list[int]:
        """Of everything that `up` has started, the supervisor first."""
        supervisor = Local(self.data).supervisor()
        return [] if supervisor is None else [supervisor, *descendants(supervisor)]

    def process_id(self, name: str) -> int:
        """Of `control`, `node` or `gateway`."""
        return int((self.data / "run" / f"{name}.pid").read_text())

    def person(self, name: str) -> Terminal:
        """Somebody with a home and a context of their own, who has not logged in yet."""
        terminal = Terminal(PROGRAM, self.home / name, self.surroundings)
        add = ("context", "add", "here", "--server", self.server, "--project", PROJECT)
        terminal.run(*add, "--ca", str(self.data / "ca.pem"))
        return terminal

    def holdings(self) -> dict[str, Any]:
        """Everything that there is: each list, and every file of the object store."""
        found: dict[str, Any] = {
            str(path.relative_to(self.objects)): path.stat().st_size
            for path in sorted(self.objects.rglob("*"))
            if path.is_file()
        }
        profiles = Profiles(self.home / "alice" / "config" / "appliance")
        profile = profiles.get()
        token = profiles.token(profile)
        with Connection(self.server, profile.ca_pem.encode(), token) as connection:
            for rpc, rows, parent in _LISTS:
                method = find(rpc)
                request = method.request(**({parent: f"projects/{PROJECT}"} if parent else {}))
                call = getattr(connection.stub(method.stub), method.short)
                found[rows] = [str(row) for row in all_pages(connection, call, request, rows)]
        return found

    def refused(
        self, *arguments: str, code: int = 1, stdin: str = "", who: Terminal | None = None
    ) -> str:
        """Type what is to be refused; everything is as before; the sentence that was said.

        Files of what came to nothing are deleted by the queue, a moment later.
        """
        before = self.holdings()
        done = (who or self.alice).run(*arguments, stdin=stdin, expect=code)
        assert done.stdout == ""
        wait_for(lambda: self.holdings() == before, "everything to be as before")
        return sentence(done)


def sentence(done: Done) -> str:
    """The one error on stderr; beside it there may be its fields, a hint and the request."""
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith(("error: ", "Error: "))]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return errors[0].partition(": ")[2]


def hint(done: Done) -> str:
    """The first hint on stderr."""
    return next(line for line in done.stderr.splitlines() if line.startswith("hint: "))[6:]


def free_ports(count: int = 8) -> int:
    """The first of so many ports in a row that nobody listens on."""
    for base in range(29500 + os.getpid() % 50 * 20, 32000, 20):
        if all(_is_free(port) for port in range(base, base + count)):
            return base
    raise AssertionError("no ports are free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def init(terminal: Terminal, data: Path, password: str, *options: str, expect: int = 0) -> Done:
    """Type `appliance init`; an option given here counts instead of the usual one."""
    return terminal.run(
        *("init", "--data-dir", str(data), "--admin", "alice", "--password-file", "-"),
        *("--port-base", str(free_ports()), "--devices", str(DEVICES)),
        *options,
        stdin=password + "\n",
        expect=expect,
    )


@contextmanager
def running(
    home: Path,
    surroundings: Mapping[str, str] | None = None,
    *options: str,
    prepare: Callable[[Path], None] | None = None,
) -> Iterator[Appliance]:
    """An appliance from `init` to `down`; afterwards nothing of it is left running.

    `surroundings` are in the environment of everybody who types, and so of every process; `options`
    are those of `init`; `prepare` gets its data directory before it comes up.
    """
    data, blocked = home / "data", home / "blocked"
    blocked.mkdir(mode=0o700)
    around = watched(surroundings or {}, blocked)
    alice = Terminal(PROGRAM, home / "alice", around)
    password = secrets.token_urlsafe(18)
    init(alice, data, password, *options)
    if prepare is not None:
        prepare(data)
    appliance = Appliance(home, data, Local(data).api, alice, password, surroundings=around)
    alice.run("up", "--data-dir", str(data), "--detach")
    started = appliance.process_ids
    try:
        appliance.secret = alice.first_login("alice", password)
        alice.run("project", "create", PROJECT)
        alice.run("context", "set-project", PROJECT)
        yield appliance
    finally:
        started += appliance.process_ids
        alice.run("down", "--data-dir", str(data))
    assert len(started) >= 8
    assert [pid for pid in started if Path(f"/proc/{pid}/exe").exists()] == []
    assert mentioning(data) == []
    of_disk = [
        found for found in loop_watchdog.findings(blocked) if loop_watchdog.is_of_disk(found)
    ]
    assert of_disk == [], "a loop waited for a disk, or for a scan: do that in a thread"


def watched(surroundings: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Surroundings in which control plane, gateway and agents note what blocks their loops."""
    paths = [str(WATCHDOG), *filter(None, [surroundings.get("PYTHONPATH")])]
    return {
        **surroundings,
        "PYTHONPATH": os.pathsep.join(paths),
        "LOOP_WATCHDOG": str(folder),
    }


def mentioning(path: Path) -> list[int]:
    """Processes that have a path in their arguments or work below it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes()
            at = (folder / "cwd").readlink()
        except OSError:
            continue
        if str(path).encode() in arguments or at.is_relative_to(path):
            found.append(int(folder.name))
    return found


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 60) -> Any:
    """The first true result of a condition. Raises AssertionError when it stays false."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(MOMENT)
    raise AssertionError(f"waited {timeout:.0f} s for {what}")


def texts(folder: Path, documents: int = 120) -> Path:
    """A little text that survives cleaning: every document says something else."""
    folder.mkdir()
    words = re.findall(r"[a-z]{3,}", (subprocess.__doc__ or "").lower())
    for number in range(documents):
        chosen = [words[(number * 37 + i * (number + 3)) % len(words)] for i in range(90)]
        lines = [" ".join(chosen[i : i + 9]).capitalize() + "." for i in range(0, 90, 9)]
        (folder / f"{number:03}.txt").write_text("\n".join(lines) + "\n")
    return folder


def code_of(secret: str, at: float) -> str:
    """What an authenticator shows at a time, seconds since the epoch."""
    return pyotp.TOTP(secret).at(int(at))
