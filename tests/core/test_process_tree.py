"""Process trees: who is below whom, who is ended, and who is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from appliance.core.process_tree import (
    Process,
    children,
    descendants,
    end,
    kill_below,
    kill_children,
    kill_tree,
    session,
    tree,
)

# Starts a child that starts another, says that it has, and waits to be ended.
FAMILY = (
    "import subprocess, sys, time;"
    "inner = 'import time; print(1, flush=True); time.sleep(60)';"
    "outer = f'import subprocess, sys; subprocess.run([sys.executable, \"-c\", {inner!r}])';"
    "subprocess.run([sys.executable, '-c', outer])"
)
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a session of its own."""
    with subprocess.Popen(SLEEP, start_new_session=True) as process:
        yield process
        process.kill()


def test_a_tree_is_ended_whole_and_nothing_else() -> None:
    family = [sys.executable, "-c", FAMILY]
    # What other tests and libraries have started from this process is not this test's to end.
    others = frozenset(descendants(os.getpid()))
    with (
        subprocess.Popen(family, stdout=subprocess.PIPE) as other,
        subprocess.Popen(family, stdout=subprocess.PIPE) as victim,
    ):
        for each in (other, victim):
            assert each.stdout is not None
            assert each.stdout.readline() == b"1\n"
        below = descendants(victim.pid)
        assert len(below) == 2
        assert kill_below(victim.pid) == below
        assert victim.wait(10) == 0
        assert not any(tree(pid) for pid in below)
        kept = descendants(other.pid)
        assert kill_below(os.getpid(), keep=others | {other.pid}) == []
        assert descendants(other.pid) == kept
        kill_below(other.pid)


def test_a_process_is_asked_to_end() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        assert end(child.pid, 10)
        assert child.wait(10) == -signal.SIGTERM
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{deaf}; time.sleep(60)"], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert not end(child.pid, 0.1)
        child.kill()


@pytest.mark.attack
def test_a_number_that_another_process_has_now_is_not_signalled(
    sleeping: subprocess.Popen[bytes],
) -> None:
    (real,) = tree(sleeping.pid)
    stranger = Process(real.pid, real.started - 1)
    assert kill_tree(2**22 + 1, {stranger})
    assert sleeping.poll() is None
    assert session(sleeping.pid) == [sleeping.pid]


def test_one_that_has_ended_and_is_not_collected_does_not_live(
    sleeping: subprocess.Popen[bytes],
) -> None:
    assert tree(sleeping.pid)
    assert sleeping.pid in children(os.getpid())
    assert end(sleeping.pid, 10)
    assert (session(sleeping.pid), tree(sleeping.pid)) == ([], set())
    assert sleeping.pid in descendants(os.getpid())
    sleeping.wait()
    assert sleeping.pid not in descendants(os.getpid())


def test_of_children_only_those_are_killed_that_were_not_collected(
    sleeping: subprocess.Popen[bytes],
) -> None:
    with subprocess.Popen(SLEEP) as other:
        other.kill()
    kill_children([other.pid, sleeping.pid, 2**22 + 1])
    assert sleeping.wait(10) == -9


def test_children_of_others_are_not_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        (grandchild,) = children(process.pid)
        kill_children([grandchild])
        assert tree(grandchild)
        assert kill_tree(process.pid)
