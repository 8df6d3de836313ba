"""In processes of their own: what is hooked into forking stays there, and death is the subject."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from appliance.core.process_tree import tree

Started = tuple[subprocess.Popen[str], list[int], list[str], int]

PROGRAM = """
import ctypes, os, sys, time, resource
from appliance.core.errors import Tampered
from appliance.core.process import harden
from appliance.worker import children

agent = int(sys.argv[1])
relatives = children.Children(agent)
harden()

def engine():
    rank = os.fork()
    if rank == 0:
        relatives.tell(Tampered("It was changed.", object="u"))
        time.sleep(60)
    time.sleep(60)

if os.fork() == 0:
    engine()
while len(relatives.members()) < 2:
    time.sleep(0.01)
while relatives.fault() is None:
    time.sleep(0.01)
print(*sorted(relatives.members()), type(relatives.fault()).__name__,
      relatives.fault().metadata["object"], resource.getrlimit(resource.RLIMIT_CORE)[1],
      ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), ctypes.CDLL(None).prctl(39, 0, 0, 0, 0), flush=True)

def lost(sentence):
    print(sentence, flush=True)
    os._exit(1)

relatives.watch(lost)
time.sleep(60)
"""


@pytest.fixture
def started() -> Iterator[Started]:
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(write)],
        pass_fds=[write],
        stdout=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    first = process.stdout.readline().split()
    yield process, [int(pid) for pid in first[:2]], first[2:], read
    process.kill()
    process.wait()
    process.stdout.close()


def gone(pids: list[int], seconds: float = 5.0) -> bool:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if not any(map(tree, pids)):
            return True
        time.sleep(0.01)
    return False


def test_a_rank_tells_why_it_fails(started: Started) -> None:
    _, _, said, read = started
    assert said[:2] == ["Tampered", "u"]
    os.close(read)


@pytest.mark.attack
def test_no_rank_survives_the_front_process(started: Started) -> None:
    process, members, _, read = started
    process.send_signal(signal.SIGKILL)
    assert gone(members)
    os.close(read)


@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_a_member_ends_all(started: Started, victim: int) -> None:
    process, members, _, read = started
    os.kill(members[victim], signal.SIGKILL)
    assert process.wait(5) == 1
    assert process.stdout.readline().startswith(f"Process {members[victim]} of")
    assert gone(members)
    os.close(read)


def test_of_several_that_died_the_one_that_forked_the_others_is_named(started: Started) -> None:
    process, members, _, read = started
    process.send_signal(signal.SIGSTOP)
    os.kill(members[0], signal.SIGKILL)
    assert gone(members)
    process.send_signal(signal.SIGCONT)
    assert process.wait(5) == 1
    assert process.stdout.readline().startswith(f"Process {members[0]} of")
    os.close(read)


def test_the_death_of_the_agent_ends_all(started: Started) -> None:
    process, members, _, read = started
    os.close(read)
    assert process.wait(5) == 1
    assert "agent is gone" in process.stdout.readline()
    assert gone(members)


@pytest.mark.attack
def test_there_are_no_core_files_no_tracers_and_no_new_rights(started: Started) -> None:
    _, _, said, read = started
    # RLIMIT_CORE, and PR_GET_DUMPABLE and PR_GET_NO_NEW_PRIVS of prctl(2).
    assert said[2:] == ["0", "0", "1"]
    os.close(read)
