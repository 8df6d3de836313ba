"""The sessions in README and in the pages run as they are printed, from top to bottom.

One shell, in a network of its own with nothing but loopback, so that the ports that a reader has
are free; a home of its own; what is asked for is answered as a person would.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pexpect
import pyotp
import pytest

from tests.fakes.pages import PAGES, ROOT, Block, blocks

README = ROOT / "README.md"
SESSIONS = [
    block
    for page in PAGES
    for block in blocks(page)
    if block.language in {"sh", "console"} and not block.not_run
]
MAX_SECONDS = 600
_UP = (
    "import fcntl,socket,struct;s=socket.socket();fcntl.ioctl(s,0x8914,struct.pack('16sh',b'lo',1))"
)
_IDS = re.compile(r"\b[0-9a-f]{32}\b")


@dataclass
class Shell:
    """A person at a shell."""

    child: pexpect.spawn[str]
    password: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    typed: int = 0

    def type(self, command: str) -> tuple[int, str]:
        """Type a line; its exit code, and what was printed."""
        self.typed += 1
        end = rf"@@ended {self.typed} (\d+)@@"
        self.child.sendline(f'{command}; echo "@@ended" {self.typed} "$?@@"')
        printed, secret = "", ""
        while True:
            what = self.child.expect(
                [
                    end,
                    r"([Pp]assword|confirmation)[^\n]*: ?$",
                    r"secret=([A-Z2-7]+)",
                    r"[Cc]ode[^\n]*: ?$",
                ],
                timeout=MAX_SECONDS,
            )
            printed += self.child.before
            if what == 0:
                return int(self.child.match[1]), printed
            if what == 1:
                self.child.sendline(self.password)
            elif what == 2:
                secret = self.child.match[1]
            else:
                self.child.sendline(pyotp.TOTP(secret).now())


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    home = tmp_path / "home"
    home.mkdir()
    surroundings = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "COLUMNS": "200",
        "PS1": "",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    inside = f'{sys.executable} -c "{_UP}" && exec bash --norc --noprofile +m'
    apart = ["unshare", "--net", "--map-root-user", "--fork", "--kill-child"]
    if subprocess.run([*apart, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine gives no network namespaces")
    child = pexpect.spawn(
        apart[0],
        [*apart[1:], "bash", "-c", inside],
        cwd=str(tmp_path),
        env=surroundings,
        encoding="utf-8",
        timeout=60,
        dimensions=(60, 250),
        echo=False,
    )
    made = Shell(child)
    made.type("PS1=")
    try:
        yield made
    finally:
        made.type('test -z "$APPLIANCE_DATA_DIR" || appliance down')
        child.close(force=True)


def copy(folder: Path) -> None:
    """What a session reads of a clone."""
    folder.mkdir()
    for name in ("README.md", "CHANGELOG.md", "docs"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy(source, folder / name)


@pytest.mark.timeout(1500)
def test_every_session_runs_as_it_is_printed(shell: Shell, tmp_path: Path) -> None:
    """README's first, which ends with `down`: what stands in other pages comes just before that."""
    copy(tmp_path / "clone")
    assert shell.type("cd clone")[0] == 0
    (use,) = (b for b in SESSIONS if b.page == README and "appliance down" in b.commands)
    others = [block for block in SESSIONS if block.page != README]
    for command in use.commands:
        if command == "appliance down":
            for block in others:
                _run(shell, block)
        # The set-up has made the command that this test types.
        if not command.startswith("make "):
            code, printed = shell.type(command)
            assert code == 0, f"{command}\n{printed}"


def _run(shell: Shell, block: Block) -> None:
    """Type a block; one that shows what is printed has to be right."""
    if block.language == "sh":
        for command in block.commands:
            code, printed = shell.type(command)
            assert code == 0, f"{block.page.name}: {command}\n{printed}"
        return
    wanted: list[str] = []
    printed = ""
    for line in block.lines:
        if line.startswith("$ "):
            _, printed = shell.type(line.removeprefix("$ "))
        else:
            wanted.append(_IDS.sub("ID", line))
    found = [_IDS.sub("ID", line.strip()) for line in printed.splitlines() if line.strip()]
    assert found == wanted
