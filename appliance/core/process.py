"""What a process that holds keys does to itself before it reads them.

The attacks: a core dump or a debugger shows the keys; the parent dies and the child works on,
without anybody who could stop it. Rules kept here:
* no core file, and no memory access by other processes of the same user (prctl(2),
  PR_SET_DUMPABLE), which also closes `/proc/<pid>/environ` and `/proc/<pid>/fd` to them;
* no rights gained by executing something (PR_SET_NO_NEW_PRIVS);
* the kernel ends the child with its parent (PR_SET_PDEATHSIG), also when the parent was killed.

Linux only. Called by the control plane with its offline commands, the agent, the gateway, workers
with the processes of their engines, the leader of a job with its ranks, and the command.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

from appliance.core.errors import FailedPrecondition

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise FailedPrecondition(
            f"the kernel refused prctl {option}: {os.strerror(ctypes.get_errno())}"
        )


def leave_no_core() -> None:
    """Let the kernel write no core file of this process or its children.

    All that a person's own command needs: it holds passwords and tokens for a moment. `harden`
    would take `/dev/stdin` and `<(...)` away from it, which are names below `/proc/self/fd`.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def harden() -> None:
    """Let nobody look into this process, and let it gain no rights. Inherited by children."""
    leave_no_core()
    _prctl(PR_SET_DUMPABLE, 0)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def give_back_memory() -> None:
    """Give pages of freed memory back to the kernel (malloc_trim(3)); a few milliseconds.

    The allocator keeps what many small owners left in between, so a process that served a crowd
    once would stay as large as the crowd, and each crowd would find other gaps. A connection that
    was ended keeps its buffers of TLS, some hundred kilobytes, until a search for circles finds it;
    those that did not last long are found here.
    """
    gc.collect(1)
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def settle_memory() -> None:
    """Leave what is there now out of the interpreter's searches for circles, from now on.

    Called once, before a server serves: code and tables of some hundred thousand objects stay until
    it ends, and each full search through them stopped everything for 33 to 84 ms (measured in the
    control plane).
    """
    gc.collect()
    gc.freeze()
    # A full search waits until a quarter of what the last one saw has been added: now of nothing.
    gc.collect()


def prefer_as_victim() -> None:
    """When memory runs out, let the kernel end this process before those that manage it.

    To be called before `harden`, which takes the file away.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def die_with_parent(parent: int) -> None:
    """End this process when process `parent`, which started it, ends.

    Raises FailedPrecondition when it has ended already. The parent's thread that started this
    process must live as long as the parent.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise FailedPrecondition("the process that started this one has ended")


def signal_name(number: int) -> str:
    """Name of a signal, such as SIGKILL."""
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals
        return f"signal {number}"


def adopt_orphans() -> None:
    """Make this process the parent of all its descendants whose own parent ends."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


@contextlib.contextmanager
def blocked(number: signal.Signals) -> Iterator[None]:
    """Block a signal in this thread, and in the processes that it starts meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
