"""Work in process trees: whole ends, short environments, capped logs."""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import json
import os
import re
import resource
import shutil
import signal
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.core import process_tree
from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.core.process_tree import tree
from appliance.node import documents, logs
from appliance.node import running as node_running
from appliance.node.cgroup import Cgroup
from appliance.node.launcher import KEPT_RUNS, Folders, Launcher, folder_name
from appliance.node.logs import CHUNK_BYTES, LAST_BYTES, CappedLog, LastOutput
from appliance.node.reports import JobReports
from appliance.node.running import NOT_LEASED_SECONDS, Ended, Launch, Running
from tests.fakes.disk import filled, small_disk
from tests.fakes.run_log import text_of

READ = """
import json, os, sys
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with os.fdopen(int(arguments["--orders-fd"]), "rb") as pipe:
    orders = json.load(pipe)
reports = int(arguments["--reports-fd"])
def say(**line):
    os.write(reports, json.dumps(line).encode() + b"\\n")
"""


class Work:
    """Starts one script and keeps what it says."""

    def __init__(self, folder: Path, log_bytes: int = 1 << 16) -> None:
        self.folder = folder
        self.launcher = Launcher(
            Folders(folder / "runs", folder / "scratch"), {"SET": "here"}, log_bytes=log_bytes
        )
        self.lines: list[dict[str, Any]] = []
        self.ended: list[Ended] = []
        self.said = asyncio.Event()

    def take(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self.said.set()

    async def start(self, script: str, document: dict[str, Any] | None = None) -> Running:
        command = [sys.executable, "-c", READ + script]
        launch = Launch("ab/0", 3, command, document or {})
        return await self.launcher.start(launch, self.take, self.ended.append)

    async def run(self, script: str, document: dict[str, Any] | None = None) -> Ended:
        running = await self.start(script, document)
        async with asyncio.timeout(30):
            await running.wait()
        (ended,) = self.ended
        return ended

    def log(self) -> Path:
        return self.folder / "runs" / "ab.0.3" / "log"


async def test_orders_come_through_a_pipe_and_reports_go_back(tmp_path: Path) -> None:
    work = Work(tmp_path)
    # Longer than a pipe holds.
    script = "say(got=len(orders['key']), cwd=os.getcwd())"
    assert await work.run(script, {"key": "k" * 100_000}) == Ended(0)
    assert work.lines == [{"got": 100_000, "cwd": str(tmp_path / "scratch" / "ab.0.3")}]
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.attack
async def test_the_environment_is_a_short_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_AGENT", "x")
    work = Work(tmp_path)
    await work.run("say(names=sorted(os.environ))")
    allowed = {"HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "SET", "TMPDIR"}
    allowed |= {"PYTHONPYCACHEPREFIX", "TZ", "VIRTUAL_ENV"}
    assert set(work.lines[0]["names"]) <= allowed
    assert {"PATH", "SET", "TMPDIR"} <= set(work.lines[0]["names"])


async def test_a_report_that_cannot_be_read_harms_nobody(tmp_path: Path) -> None:
    work = Work(tmp_path)
    ended = await work.run("os.write(reports, b'{\\n'); say(fine=1)")
    assert (ended, work.lines) == (Ended(0), [{"fine": 1}])


@pytest.mark.parametrize("value", ["'x' * 100_000", "[]", "float('inf')", "{}"])
async def test_what_follows_a_report_that_makes_no_sense_is_heard(
    tmp_path: Path, value: str
) -> None:
    work, reports = Work(tmp_path), JobReports(rpc.WorkEpoch(work="ab/0", epoch=3))

    def take(line: dict[str, Any]) -> None:
        work.lines.append(line)
        reports.take(line)

    script = f"""
for key in ("metrics", "step"):
    line = {{"type": "progress", "step": 1, "total": 2, "metrics": {{}}, key: {value}}}
    for _ in range(50):
        say(**line)
say(type="progress", step=2, total=2, metrics={{}})
"""
    command = [sys.executable, "-c", READ + script]
    running = await work.launcher.start(Launch("ab/0", 3, command, {}), take, work.ended.append)
    async with asyncio.timeout(30):
        await running.wait()
    assert work.ended == [Ended(0)]
    assert work.lines[-1]["step"] == 2


async def test_starts_that_tidy_up_at_the_same_time_are_not_in_each_others_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(tmp_path)
    old = [tmp_path / "runs" / f"old.{number}" for number in range(KEPT_RUNS + 10)]
    for folder in old:
        folder.mkdir()
    listed = Path.iterdir

    def then_gone(path: Path) -> Any:
        found = list(listed(path))
        for folder in found[:20]:
            if folder in old:
                folder.rmdir()  # by the other
        return iter(found)

    monkeypatch.setattr(Path, "iterdir", then_gone)
    assert await work.run("say(fine=1)") == Ended(0)


async def test_a_start_that_fails_while_it_tidies_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(tmp_path)

    def fails(_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(work.launcher, "_forget_old_runs", fails)
    with pytest.raises(OSError, match="Input/output"):
        await work.start("say(fine=1)")
    assert work.launcher._running == set()


async def test_an_exit_code_and_a_signal_become_sentences(tmp_path: Path) -> None:
    work = Work(tmp_path)
    assert (await work.run("sys.exit(7)")).sentence() == "its process ended with code 7"
    work.ended.clear()
    ended = await work.run("os.kill(os.getpid(), 9)")
    assert ended == Ended(-9)
    assert ended.sentence() == (
        "its process was killed by SIGKILL, as the kernel does when memory runs out"
    )
    assert Ended(-15).sentence() == "its process was killed by SIGTERM"
    assert Ended(-40).sentence() == "its process was killed by signal 40"
    assert "more memory" in Ended(-9, out_of_memory=True).sentence()


CHILD_THAT_LEAVES = """
import time
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        say(pid=os.getpid())
        time.sleep(60)
    time.sleep(60)
"""


async def test_nothing_is_left_when_the_first_process_ends(tmp_path: Path) -> None:
    work = Work(tmp_path)
    running = await work.start(CHILD_THAT_LEAVES + "time.sleep(60)")
    await work.said.wait()
    left = work.lines[0]["pid"]
    gone = os.pidfd_open(left)
    await running._remember_tree()
    os.kill(running.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        await running.wait()
    assert process_tree.session(running.pid) == []
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(gone, event.set)
    async with asyncio.timeout(5):
        await event.wait()
    loop.remove_reader(gone)
    os.close(gone)


async def test_stop_asks_first_and_kills_after_the_grace(tmp_path: Path) -> None:
    work = Work(tmp_path)
    script = "import signal\nsignal.signal(15, lambda *_: say(asked=1))\nsay(up=1)\n"
    running = await work.start(script + "while True: signal.pause()")
    await work.said.wait()
    running.stop(0.3)
    async with asyncio.timeout(20):
        await running.wait()
    assert work.lines == [{"up": 1}, {"asked": 1}]
    assert work.ended == [Ended(-9)]


async def test_told_to_stop_again_it_has_less_time_and_never_more(tmp_path: Path) -> None:
    work = Work(tmp_path)
    script = "import signal\nsignal.signal(15, lambda *_: say(asked=1))\nsay(up=1)\n"
    running = await work.start(script + "while True: signal.pause()")
    await work.said.wait()
    running.stop(NOT_LEASED_SECONDS)
    # What is not leased any more is told so with each heartbeat; that takes nothing away.
    running.stop(0.0)
    running.stop(0.3)
    running.stop(3600.0)
    async with asyncio.timeout(20):
        await running.wait()
    # Asked once.
    assert work.lines == [{"up": 1}, {"asked": 1}]
    assert work.ended == [Ended(-9)]


@pytest.mark.attack
async def test_a_long_drain_ends_soon_once_it_is_not_leased_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_running, "NOT_LEASED_SECONDS", 0.3)
    work = Work(tmp_path)
    script = "import signal\nsignal.signal(15, lambda *_: None)\nsay(up=1)\n"
    running = await work.start(script + "while True: signal.pause()")
    await work.said.wait()
    running.stop(3600.0)
    running.stop(0.0)
    async with asyncio.timeout(20):
        await running.wait()
    assert work.ended == [Ended(-9)]


async def test_no_core_file_and_a_private_log(tmp_path: Path) -> None:
    work = Work(tmp_path)
    running = await work.start("print('hello'); sys.stdout.flush(); say(up=1); sys.stdin.read()")
    assert resource.prlimit(running.pid, resource.RLIMIT_CORE) == (0, 0)
    await running.wait()
    assert text_of(work.log()) == "hello\n"
    assert stat.S_IMODE(work.log().stat().st_mode) == 0o600


@pytest.mark.attack
@pytest.mark.parametrize("work", ["", "..", "a/../b", "/a", "a/b/c", "a b", "a\n", "a" * 201])
def test_a_work_cannot_name_a_folder_elsewhere(work: str) -> None:
    with pytest.raises(InvalidInput):
        folder_name(work, 1)


def test_a_log_keeps_the_newest_and_no_token(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "log", 600)
    for number in range(50):
        log.write(f"line {number}\n".encode())
    log.write(b"token sla_ses_abc_SECRET_crc")
    log.close()
    sizes = [(tmp_path / name).stat().st_size for name in ("log", "log.1")]
    assert 300 < sum(sizes) <= 600
    newer, older = text_of(tmp_path / "log"), text_of(tmp_path / "log.1")
    assert newer.endswith("line 49\ntoken sla_ses_abc_[redacted]\n")
    assert older.splitlines()[-1] == f"line {int(newer.split()[1]) - 1}"


def test_the_last_lines_are_whole_and_bounded(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "log", 1 << 20)
    log.write("first\nsecond é".encode()[:-1])
    log.write("é".encode()[1:])
    log.close()
    assert log.last == LastOutput("first\nsecond é\n", cut=False)
    log = CappedLog(tmp_path / "log", 1 << 20)
    for number in range(3000):
        log.write(f"line {number} é\n".encode())
    log.close()
    assert log.last.cut
    assert LAST_BYTES - 20 < len(log.last.text.encode()) <= LAST_BYTES
    first, *_, last = log.last.text.splitlines()
    assert (re.fullmatch(r"line \d+ é", first) is not None, last) == (True, "line 2999 é")


def test_one_line_that_never_ends_is_cut_between_characters(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "log", 1 << 20)
    data = ("é" * 300_000).encode()
    for start in range(0, len(data), 6001):
        log.write(data[start : start + 6001])
    log.close()
    assert log.last.cut
    assert set(log.last.text.strip()) == {"é"}
    assert len(log.last.text.encode()) in (LAST_BYTES - 1, LAST_BYTES)


@pytest.mark.attack
def test_no_key_and_no_token_is_kept_however_it_is_written(tmp_path: Path) -> None:
    key = bytes(range(100, 132))
    place = {"key": base64.b64encode(key).decode()}
    orders = {"inputs": {"a": place}, "outputs": {}, "key_pem": "-----BEGIN\nMIGHAgEAMBMGByqG\n"}
    hidden = documents.secrets(orders)
    shown = [place["key"], key.hex(), repr(key), json.dumps(repr(key)), "MIGHAgEAMBMGByqG"]
    token = "sla_ses_abc_SECRETSECRET_crc"
    log = CappedLog(tmp_path / "log", 1 << 20, hidden)
    long = ("x" * 70_000 + " ".join([*shown, token])).encode()
    # The second piece begins inside a secret, in a line that is longer than what is held back.
    log.write("\n".join(shown).encode() + b"\n" + long[:70_010])
    log.write(long[70_010:])
    log.close()
    kept = text_of(tmp_path / "log")
    assert kept.count("[redacted]") == 2 * len(shown) + 1
    assert log.last.text.count("[redacted]") == len(shown) + 1
    for secret in (*hidden, "SECRETSECRET"):
        assert secret not in kept + log.last.text


@pytest.mark.attack
def test_no_secret_shows_its_end_wherever_a_line_without_end_is_cut(tmp_path: Path) -> None:
    key, token = "k" * 44, "sla_ses_0123456789abcdef_" + "S" * 43
    line = (f"{token} {key}," * 1500).encode()
    for pieces in (65_536 + 20, 65_536 + 60, 65_536 + 100, 1 << 16, 40_001):
        log = CappedLog(tmp_path / "log", 1 << 20, [key])
        for start in range(0, len(line), pieces):
            log.write(line[start : start + pieces])
        log.close()
        kept = text_of(tmp_path / "log").replace("\n", "")
        assert kept == "sla_ses_0123456789abcdef_[redacted] [redacted]," * 1500


def test_a_folder_that_is_gone_costs_lines_of_the_log_and_not_the_work(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    log = CappedLog(tmp_path / "runs" / "log", 200)
    shutil.rmtree(tmp_path / "runs")
    for number in range(50):
        log.write(f"line {number}\n".encode())
    log.close()
    assert log.last.text.endswith("line 48\nline 49\n")


def test_a_log_goes_on_when_there_is_room_for_its_next_file_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = CappedLog(tmp_path / "log", 400)
    log.write(b"x" * 90 + b"\n")

    def full(_: Path) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(logs, "_open", full)
        log.write(b"y" * 90 + b"\n")
        log.write(b"y" * 90 + b"\n")
    log.write(b"after\n")
    log.close()
    assert text_of(tmp_path / "log.1") == "x" * 90 + "\n"
    assert text_of(tmp_path / "log") == "(182 bytes were lost here: the disk was full)\nafter\n"
    # What is missing has numbers, too.
    assert (tmp_path / "log").read_text().startswith("4 ")


async def test_the_log_of_a_running_work_is_never_forgotten(tmp_path: Path) -> None:
    work = Work(tmp_path)
    running = await work.start("say(up=1); sys.stdin.close(); import time; time.sleep(60)")
    for number in range(KEPT_RUNS + 10):
        (tmp_path / "runs" / f"old.{number}").mkdir(mode=0o700)
        os.utime(tmp_path / "runs" / f"old.{number}", (2**31 + number, 2**31 + number))
    launch = Launch("cd/1", 1, [sys.executable, "-c", READ], {})
    other = await work.launcher.start(launch, work.take, work.ended.append)
    await other.wait()
    assert work.log().exists()
    assert len(list((tmp_path / "runs").iterdir())) == KEPT_RUNS + 2
    running.stop(0)
    await running.wait()


@pytest.mark.attack
@pytest.mark.parametrize("at", ["_hand_over", "_reader"])
async def test_a_start_that_is_called_off_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    reached = threading.Event()

    def held(descriptor: int, document: bytes) -> None:
        reached.set()
        time.sleep(0.2)
        os.close(descriptor)

    async def never(descriptor: int, _limit: int) -> asyncio.StreamReader:
        reached.set()
        os.close(descriptor)
        return await asyncio.Future()

    monkeypatch.setattr(node_running, at, held if at == "_hand_over" else never)
    work, before = Work(tmp_path), tree(os.getpid())
    task = asyncio.create_task(work.start("import time; time.sleep(60)"))
    await asyncio.to_thread(reached.wait)
    mine = tree(os.getpid()) - before
    assert mine
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not mine & tree(os.getpid(), mine)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert work.ended == []


class SlowDisk:
    """Takes nothing of any log until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.goes_on, self.largest = threading.Event(), threading.Event(), 0
        write = CappedLog.write

        def slow(log: CappedLog, chunk: bytes, rank: int | None = None) -> None:
            self.largest = max(self.largest, len(chunk))
            self.reached.set()
            self.goes_on.wait(10)
            write(log, chunk, rank)

        monkeypatch.setattr(CappedLog, "write", slow)


async def test_a_slow_disk_holds_up_the_work_and_not_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, work = SlowDisk(monkeypatch), Work(tmp_path, log_bytes=1 << 24)
    running = await work.start("""
print("first", flush=True)
say(far=1)
for number in range(100_000):
    print(number)
sys.stdout.flush()
say(far=2)
""")
    async with asyncio.timeout(5):
        # It hears its works, and whoever else is with it, while the disk takes nothing.
        await asyncio.to_thread(disk.reached.wait)
        while not work.lines:
            await work.said.wait()
    assert work.lines == [{"far": 1}]
    disk.goes_on.set()
    async with asyncio.timeout(30):
        await running.wait()
    assert work.lines == [{"far": 1}, {"far": 2}]
    assert text_of(work.log()).split() == ["first", *map(str, range(100_000))]
    assert disk.largest <= CHUNK_BYTES


async def test_what_a_work_said_last_is_kept_although_the_disk_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time-out is for a pipe that somebody keeps open."""
    monkeypatch.setattr(node_running, "DRAIN_SECONDS", 0.01)
    disk, work = SlowDisk(monkeypatch), Work(tmp_path)
    waited, wait = asyncio.Event(), asyncio.wait

    async def counted(tasks: Any, **how: Any) -> Any:
        found = await wait(tasks, **how)
        if how.get("timeout") == node_running.DRAIN_SECONDS and found[1]:
            waited.set()
        return found

    monkeypatch.setattr(asyncio, "wait", counted)
    running = await work.start("print('one', flush=True); os.write(1, b'the last')")
    async with asyncio.timeout(30):
        await waited.wait()
        assert work.ended == []
        disk.goes_on.set()
        await running.wait()
    assert text_of(work.log()) == "one\nthe last\n"
    assert work.ended[0].last.text == "one\nthe last\n"


@pytest.mark.parametrize("made", ["scratch", "everything"])
async def test_a_start_that_is_called_off_while_its_folder_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    """What a thread on a slow disk makes after that goes as well."""
    work, groups = Work(tmp_path), tmp_path / "groups"
    groups.mkdir()
    work.launcher = Launcher(
        Folders(tmp_path / "runs", tmp_path / "scratch"), {}, log_bytes=1000, cgroup=groups
    )
    reached, go_on, opened = threading.Event(), threading.Event(), list[CappedLog]()
    prepare = work.launcher._prepare

    def slow(*of: Any) -> tuple[CappedLog, Cgroup | None]:
        found = prepare(*of) if made == "everything" else None
        reached.set()
        go_on.wait(30)
        log, group = found or prepare(*of)
        opened.append(log)
        return log, group

    monkeypatch.setattr(work.launcher, "_prepare", slow)
    task = asyncio.create_task(work.start("say(fine=1)"))
    await asyncio.to_thread(reached.wait, 30)
    task.cancel()
    await asyncio.sleep(0)
    assert work.launcher._running == {"ab.0.3"}
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list((tmp_path / "scratch").iterdir()) == []
    assert list(groups.iterdir()) == []
    assert opened[0]._file.closed
    assert work.launcher._running == set()
    assert work.ended == []


def test_the_last_lines_are_there_although_the_disk_is_full(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "log", 1 << 20)
    log._file.close()
    log._file = io.FileIO("/dev/full", "w")
    log.write(b"why it failed\n")
    log.close()
    assert log.last == LastOutput("why it failed\n", cut=False)


async def test_the_end_of_a_work_brings_its_last_output(tmp_path: Path) -> None:
    work = Work(tmp_path)
    ended = await work.run("print('what it read'); sys.stdout.flush(); sys.exit(3)")
    assert ended.last == LastOutput("what it read\n", cut=False)
    # It may quote text of users, and never gets into a log of the agent's own.
    assert "what it read" not in repr(ended)


def test_a_cgroup_holds_the_limit_and_the_process(tmp_path: Path) -> None:
    group = Cgroup(tmp_path, "work.1", 1 << 30)
    group.add(42)
    folder = tmp_path / "work.1"
    assert (folder / "memory.max").read_text() == str(1 << 30)
    assert (folder / "cgroup.procs").read_text() == "42"
    (folder / "memory.events").write_text("oom 1\noom_kill 2\n")
    assert group.out_of_memory()
    group.kill()
    assert (folder / "cgroup.kill").read_text() == "1"


async def test_a_work_that_cannot_be_limited_does_not_run_without_a_limit(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.launcher = Launcher(
        Folders(tmp_path / "runs", tmp_path / "scratch"), {}, log_bytes=1000, cgroup=tmp_path
    )
    # The kernel takes no process there.
    (tmp_path / "ab.0.3" / "cgroup.procs").mkdir(parents=True)
    before = set(process_tree.session(os.getpid()))
    with pytest.raises(FailedPrecondition, match="would have no memory limit"):
        await work.start("import time; time.sleep(60)")
    assert set(process_tree.session(os.getpid())) == before
    assert work.ended == []
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_folder_that_is_not_delegated_says_so(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="delegate"):
        Cgroup(tmp_path / "missing", "work.1", 0)


def test_orders_are_not_shown() -> None:
    assert "secret" not in repr(Launch("a", 1, ["x"], {"key": "secret"}))


async def test_a_full_disk_costs_lines_of_the_log_and_not_the_work(tmp_path: Path) -> None:
    """Whoever reads what a work says must go on reading, or the work stops at a full pipe."""
    with small_disk(tmp_path / "disk", 2) as disk:
        log = CappedLog(disk / "log", 1 << 22)
        log.write(b"before\n")
        with filled(disk):
            for _ in range(100):
                log.write(b"x" * 4095 + b"\n")
        log.write(b"after\n")
        log.close()
        lines = text_of(disk / "log").splitlines()
    assert lines[0] == "before"
    assert re.fullmatch(r"\(\d+ bytes were lost here: the disk was full\)", lines[-2])
    assert lines[-1] == "after"


def test_what_a_killed_agent_left_for_temporary_files_goes_and_nothing_else(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir(mode=0o700)
    others = ["notes", "ab.0.3", f"{'0a' * 16}", f"{'0a' * 16}.x"]
    for name in [f"{'0a' * 16}.1", f"{'0b' * 16}.r0.12", *others]:
        (scratch / name).mkdir()
        (scratch / name / "file").touch()
    Work(tmp_path)
    assert sorted(path.name for path in scratch.iterdir()) == sorted(others)
