"""A person at a terminal, played by a program: types `appliance` commands, reads what they print.

The demo has no other way in. What it types is echoed, so that its log reads like a session.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import pexpect
import pyotp


class CommandFailedError(Exception):
    """A command ended with another exit code than expected."""


class Terminal:
    """Runs `appliance` commands with a home of their own.

    Args:
        program: path of the `appliance` command.
        home: folder for configuration and sessions; nothing of the caller's own is touched.
        surroundings: further variables of its environment.
    """

    def __init__(
        self, program: Path, home: Path, surroundings: Mapping[str, str] | None = None
    ) -> None:
        self._program = str(program)
        home.mkdir(parents=True, exist_ok=True)
        self._env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "COLUMNS": "120",
            **(surroundings or {}),
        }

    def run(
        self,
        *arguments: str,
        stdin: str = "",
        expect: int = 0,
        timeout: float = 600,
        echo: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Type one command and wait for its end; `echo` shows what was typed.

        Raises:
            CommandFailedError: the exit code is not `expect`; the message holds what was printed.
        """
        if echo:
            _show(arguments)
        done = subprocess.run(
            [self._program, *arguments],
            input=stdin,
            env=self._env,
            text=True,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode != expect:
            message = (
                f"`appliance {' '.join(arguments)}` ended with {done.returncode}, "
                f"expected {expect}:\n{done.stdout}{done.stderr}"
            )
            raise CommandFailedError(message)
        return done

    def begin(self, *arguments: str, output: IO[bytes]) -> subprocess.Popen[bytes]:
        """Type one command, which writes into a file and goes on until it ends or is killed."""
        _show(arguments)
        return subprocess.Popen([self._program, *arguments], env=self._env, stdout=output)

    def json(self, *arguments: str, timeout: float = 600, echo: bool = True) -> Any:
        """Type one command with `-o json` and return what it printed."""
        done = self.run(*arguments, "-o", "json", timeout=timeout, echo=echo)
        return json.loads(done.stdout)

    def first_login(
        self,
        user: str,
        password: str,
        new_password: str = "",
        clock: Callable[[], float] = time.time,
    ) -> str:
        """Log in on a real terminal, enrol an authenticator; return its secret (base32).

        `new_password` replaces one that somebody else chose; `clock` is the authenticator's.
        """
        print(f"  $ appliance login --user {user}", flush=True)
        child = pexpect.spawn(
            self._program,
            ["login", "--user", user],
            env=self._env,
            encoding="utf-8",
            timeout=60,
            dimensions=(60, 200),
        )
        child.expect("[Pp]assword.*: ?")
        child.sendline(password)
        child.expect(r"otpauth://\S+secret=([A-Z2-7]+)")
        assert isinstance(child.match, re.Match)
        secret = child.match.group(1)
        child.expect("[Cc]ode.*: ?")
        child.sendline(pyotp.TOTP(secret).at(int(clock())))
        printed = ""
        for _ in range(2 if new_password else 0):
            child.expect("(New password of|Repeat for confirmation).*: ?")
            printed += child.before or ""
            child.sendline(new_password)
        child.expect(pexpect.EOF)
        printed += child.before or ""
        codes = len(re.findall(r"[a-z2-7]{4}(?:-[a-z2-7]{2,}){3,}", printed.lower()))
        child.close()
        if child.exitstatus != 0:
            raise CommandFailedError(printed)
        print(f"    authenticator enrolled with a QR code; {codes} recovery codes shown once")
        return str(secret)


def _show(arguments: tuple[str, ...]) -> None:
    print("  $ appliance " + " ".join(map(_quoted, arguments)), flush=True)


def _quoted(argument: str) -> str:
    return f'"{argument}"' if " " in argument else argument
