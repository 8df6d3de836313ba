"""A person at a real terminal with a real appliance: from nothing to a refused call, and down.

The terminal is a hostile one: its umask is 0, and every spelling of a proxy names one that nobody
runs.
"""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pyotp
import pytest

from appliance.cli.local import Local
from appliance.core.process_tree import descendants

PASSWORDS = {"alice": "violet harbour 41 tram", "dora": "seven quiet 92 lanterns"}
PROGRAM = [sys.executable, "-m", "appliance.cli.main"]
PROXIES = [
    spelling
    for scheme in ("http", "https", "grpc", "all")
    for spelling in (f"{scheme}_proxy", f"{scheme}_PROXY".upper())
]
PUBLIC = {"ca.pem"}
Type = Callable[..., subprocess.CompletedProcess[str]]


def free_ports(count: int) -> int:
    for base in range(21440, 29000, 20):
        try:
            for port in range(base, base + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    raise AssertionError("no ports are free")


def environment(home: Path) -> dict[str, str]:
    names = ("PATH", "VIRTUAL_ENV", "LANG")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return (
        kept
        | dict.fromkeys(PROXIES, "http://127.0.0.1:9")
        | {"HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), "TERM": "dumb"}
    )


@pytest.fixture
def type_(tmp_path: Path) -> Type:
    def run(
        *arguments: str, stdin: str = "", who: str = "alice"
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, *arguments],
            input=stdin,
            env=environment(tmp_path / who),
            text=True,
            capture_output=True,
            timeout=150,
            check=False,
            umask=0,
        )

    return run


@pytest.fixture
def data(tmp_path: Path, type_: Type) -> Iterator[Path]:
    """The data directory of an appliance that runs."""
    folder = tmp_path / "data"
    made = type_(
        *("init", "--data-dir", str(folder), "--admin", "alice", "--password-file", "-"),
        *("--port-base", str(free_ports(8)), "--devices", "2", "-o", "json"),
        stdin=PASSWORDS["alice"] + "\n",
    )
    assert made.returncode == 0, made.stderr
    up = type_("up", "--data-dir", str(folder), "--detach")
    try:
        assert up.returncode == 0, up.stderr
        yield folder
    finally:
        type_("down", "--data-dir", str(folder))


def log_in(home: Path, user: str, new_password: str = "") -> str:
    """Log in for the first time at a terminal; returns the authenticator's secret.

    `new_password` replaces one that somebody else chose.
    """
    child = pexpect.spawn(
        PROGRAM[0],
        [*PROGRAM[1:], "login", "--user", user],
        env=environment(home),
        encoding="utf-8",
        timeout=60,
        dimensions=(60, 200),
    )
    child.expect("Password of .*: ")
    child.sendline(PASSWORDS[user])
    child.expect(r"otpauth://\S+secret=([A-Z2-7]+)")
    secret: str = child.match.group(1)
    child.expect("Code from your authenticator: ")
    child.sendline(pyotp.TOTP(secret).now())
    printed = ""
    for asks in ("New password of .*: ", "Repeat for confirmation: ") if new_password else ():
        child.expect(asks)
        printed += child.before
        child.sendline(new_password)
    child.expect(pexpect.EOF)
    printed += child.before
    child.close()
    assert child.exitstatus == 0, printed
    assert not [word for word in (PASSWORDS[user], new_password) if word and word in printed]
    assert len(re.findall(r"^[a-z2-7]{5}(-[a-z2-7]+)+\r?$", printed, re.MULTILINE)) == 10
    return secret


def an_edit_of_the_records_is_found(data: Path, tmp_path: Path, type_: Type) -> None:
    note, key, records = (str(tmp_path / name) for name in ("note", "key.pem", "records"))
    assert type_("audit", "checkpoint", "--out", note, "--public-key-out", key).returncode == 0
    assert type_("audit", "export", "--out", records).returncode == 0
    verify = ("audit", "verify", "--public-key", key, "--checkpoint", note)
    proved = type_(*verify, "--records", records, "-o", "json")
    assert json.loads(proved.stdout)["signed"] > 0
    assert type_(*verify, "--data-dir", str(data)).returncode == 0
    lines = Path(records).read_bytes().splitlines(keepends=True)
    bad = next(i for i, line in enumerate(lines) if b"users/dora" in line)
    lines[bad] = lines[bad].replace(b"users/dora", b"users/eve0")
    Path(records).write_bytes(b"".join(lines))
    refused = type_(*verify, "--records", records)
    assert (refused.returncode, f"audit record {bad} " in refused.stderr) == (1, True)


def open_to_others(folder: Path) -> list[tuple[str, str]]:
    """What others may read or write below a folder, but for what is public, with its mode."""
    return [
        (str(path.relative_to(folder)), f"{path.stat().st_mode & 0o777:o}")
        for path in folder.rglob("*")
        if path.stat().st_mode & (0o022 if path.name in PUBLIC else 0o077)
    ]


def cores_of(pid: int) -> str:
    """The largest core file that the kernel may write of a process."""
    limits = Path(f"/proc/{pid}/limits").read_text()
    return next(line for line in limits.splitlines() if "core file" in line).split()[4]


@pytest.mark.attack
def test_nothing_is_open_to_others_and_nothing_leaves_a_core(
    data: Path, tmp_path: Path, type_: Type
) -> None:
    log_in(tmp_path / "alice", "alice")
    assert (data / "run" / "control.pid").exists()
    assert len(list(data.rglob("*"))) > 20
    assert open_to_others(data) == []
    assert open_to_others(tmp_path / "alice") == []
    supervisor = Local(data).supervisor()
    assert supervisor is not None
    assert {cores_of(pid) for pid in [supervisor, *descendants(supervisor)]} == {"0"}
    # What an older version left open is closed when it is used again.
    assert type_("down", "--data-dir", str(data)).returncode == 0
    for path in (data / "run").iterdir():
        path.chmod(0o666)
    up = type_("up", "--data-dir", str(data), "--detach")
    assert up.returncode == 0, up.stderr
    assert open_to_others(data / "run") == []


def test_up_and_down(data: Path, type_: Type) -> None:
    supervisor = Local(data).supervisor()
    assert supervisor is not None
    running = [supervisor, *descendants(supervisor)]
    assert len(running) >= 4
    again = type_("up", "--data-dir", str(data))
    assert (again.returncode, "already running" in again.stderr) == (1, True)
    second = type_(
        *("init", "--data-dir", str(data), "--admin", "eve", "--password-file", "-"),
        stdin=PASSWORDS["dora"] + "\n",
    )
    assert (second.returncode, "already holds an appliance" in second.stderr) == (1, True)
    down = type_("down", "--data-dir", str(data))
    assert (down.returncode, "is down" in down.stderr) == (0, True)
    assert [pid for pid in running if Path(f"/proc/{pid}/exe").exists()] == []
    assert "not running" in type_("down", "--data-dir", str(data)).stderr
    assert type_("status").returncode == 7


def test_a_person_logs_in_and_another_one_is_refused_by_name(
    data: Path, tmp_path: Path, type_: Type
) -> None:
    assert type_("whoami").returncode == 4
    log_in(tmp_path / "alice", "alice")
    assert type_("project", "create", "demo").returncode == 0
    assert type_("context", "set-project", "demo").returncode == 0
    user = type_("user", "create", "dora", "--password-file", "-", stdin=PASSWORDS["dora"] + "\n")
    assert user.returncode == 0, user.stderr
    give = ("binding", "create", "--principal", "users/dora", "--role", "developer")
    assert type_(*give, "--project", "demo").returncode == 0
    nodes = json.loads(type_("node", "list", "-o", "json").stdout)
    assert [(node["state"], node["devices"]) for node in nodes] == [("STATE_READY", 2)]

    server = Local(data).api
    ca = str(data / "ca.pem")
    add = ("context", "add", "demo", "--server", server, "--ca", ca, "--project", "demo")
    assert type_(*add, who="dora").returncode == 0
    wrong = type_(
        "login", "--user", "dora", "--password-file", "-", stdin="not her password\n", who="dora"
    )
    assert wrong.returncode == 4
    log_in(tmp_path / "dora", "dora", "nine warm tiled ovens")
    assert type_("dataset", "list", who="dora").returncode == 0
    denied = type_("user", "list", who="dora")
    assert (denied.returncode, denied.stdout) == (5, "")
    assert "request: " in denied.stderr
    listed = type_("audit", "list", "--outcome", "PERMISSION_DENIED", "-o", "json")
    assert "users/dora" in {record["principal"] for record in json.loads(listed.stdout)}

    an_edit_of_the_records_is_found(data, tmp_path, type_)
    assert type_("logout").returncode == 0
    assert type_("whoami").returncode == 4


def test_a_refused_password_makes_nothing(tmp_path: Path, type_: Type) -> None:
    folder = tmp_path / "data"
    made = type_(
        *("init", "--data-dir", str(folder), "--admin", "alice", "--password-file", "-"),
        stdin="short\n",
    )
    assert (made.returncode, "12 characters" in made.stderr) == (1, True)
    assert not folder.exists()
    assert type_("context", "list", "-o", "json").stdout == "[]\n"


def test_an_address_of_the_sixth_version_is_written_with_brackets(
    tmp_path: Path, type_: Type
) -> None:
    made = type_(
        *("init", "--data-dir", str(tmp_path / "data"), "--admin", "alice", "--password-file", "-"),
        *("--listen", "::1", "--address", "::1"),
        stdin=PASSWORDS["alice"] + "\n",
    )
    assert made.returncode == 0, made.stderr
    (context,) = json.loads(type_("context", "list", "-o", "json").stdout)
    assert context["server"] == "[::1]:7443" == Local(tmp_path / "data").api
