"""What may go away or go wrong, as it is done to a real appliance.

Each is a context: it holds inside, and is over afterwards, when whoever it happened to is back.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import timedelta
from pathlib import Path

from alembic.script import ScriptDirectory

import appliance
from appliance.control.store import migrate
from deploy.demo import processes
from tests.fakes import moved_clock
from tests.fakes.disk import filled
from tests.journeys.running import wait_for
from tests.journeys.two_nodes import ENDPOINT, PARENT, Two

PACKAGE = Path(appliance.__file__).parent
SLOW_MILLISECONDS = 150
CLOCK_STEP = timedelta(minutes=4)
"""Less than what a control plane takes for a clock that was set back, and does not start with."""


@contextmanager
def process_gets(two: Two, name: str, number: int) -> Iterator[None]:
    """A process of the appliance's own server gets a signal that ends it; another is started."""
    before = two.appliance.process_id(name)
    os.kill(before, number)
    yield
    two.wait_for_another(name, before)


@contextmanager
def control_hangs(two: Two) -> Iterator[None]:
    """The control plane is stopped, with every connection open."""
    control = two.appliance.process_id("control")
    os.kill(control, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(control, signal.SIGCONT)
    wait_for(two.answers, "the control plane to answer")


@contextmanager
def agent_hangs(two: Two) -> Iterator[None]:
    """The second node's agent is stopped; its work is not."""
    two.agent.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        two.agent.send_signal(signal.SIGCONT)


@contextmanager
def agent_is_killed(two: Two) -> Iterator[None]:
    """The second node's agent is killed, and all its work with it; its unit starts it again."""
    two.agent.kill()
    two.agent.wait()
    two.start_agent()
    yield


@contextmanager
def rank_is_killed(two: Two, job: str) -> Iterator[None]:
    """One of the ranks of a job is killed, as the demo does it."""
    os.kill(processes.ranks_of(job)[0], signal.SIGKILL)
    yield


@contextmanager
def worker_is_killed(two: Two) -> Iterator[None]:
    """One of the replicas is killed."""
    endpoint = two.call("EndpointService.GetEndpoint", name=ENDPOINT).uid
    os.kill(processes.workers_of(endpoint)[0], signal.SIGKILL)
    yield


@contextmanager
def cut(two: Two, *, everybody: bool) -> Iterator[None]:
    """The second node, or everybody, does not reach the control plane, but each other."""
    with two.network.cut(two.ports(), everybody=everybody):
        yield


@contextmanager
def store_says(two: Two, text: str) -> Iterator[None]:
    """The control plane's object store is in some trouble (`bench/hung_store/hang.c`)."""
    two.trouble.write_text(text)
    try:
        yield
    finally:
        two.trouble.unlink()


@contextmanager
def store_is_full(two: Two, job: str) -> Iterator[None]:
    """The disk of the object store is full, at least until a job has met that."""

    def met() -> bool:
        jobs = two.call("JobService.ListJobs", rows="jobs", parent=PARENT)
        return any(found.uid == job and found.state == found.STATE_PAUSED for found in jobs)

    with filled(two.appliance.objects):
        yield
        wait_for(met, "the job to meet the full disk")


@contextmanager
def clock_jumps(two: Two) -> Iterator[None]:
    """The clock of the appliance's own server is set forward, and back again."""
    moved_clock.set_to(two.clock, CLOCK_STEP)
    try:
        yield
    finally:
        moved_clock.set_to(two.clock, timedelta())


@contextmanager
def next_version(two: Two) -> Iterator[None]:
    """The control plane ends, and one with one migration more is started: the next version."""
    new = two.appliance.home / "next"
    package = new.with_name("making") / "appliance"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    newest = ScriptDirectory(str(migrate.MIGRATIONS)).get_current_head()
    (package / migrate.MIGRATIONS.relative_to(PACKAGE) / "versions" / "9999_next.py").write_text(
        '"""The next version has one table more."""\n\n'
        "import sqlalchemy as sa\nfrom alembic import op\n\n"
        f'revision = "9999"\ndown_revision = "{newest}"\nbranch_labels = depends_on = None\n\n\n'
        'def upgrade() -> None:\n    op.create_table("next", sa.Column("id", sa.Integer()))\n'
    )
    package.parent.rename(new)
    with process_gets(two, "control", signal.SIGTERM):
        yield
    with closing(sqlite3.connect(two.appliance.data / "state.db")) as state:
        assert state.execute("select version_num from alembic_version").fetchall() == [("9999",)]


Fault = Callable[[Two, str], AbstractContextManager[None]]
FAULTS: Mapping[str, Fault] = {
    "control plane, SIGTERM": lambda two, _: process_gets(two, "control", signal.SIGTERM),
    "control plane, kill -9": lambda two, _: process_gets(two, "control", signal.SIGKILL),
    "control plane, SIGSTOP": lambda two, _: control_hangs(two),
    "control plane, next version": lambda two, _: next_version(two),
    "gateway, SIGTERM": lambda two, _: process_gets(two, "gateway", signal.SIGTERM),
    "gateway, kill -9": lambda two, _: process_gets(two, "gateway", signal.SIGKILL),
    "agent, kill -9": lambda two, _: agent_is_killed(two),
    "agent, SIGSTOP": lambda two, _: agent_hangs(two),
    "rank, kill -9": rank_is_killed,
    "replica, kill -9": lambda two, _: worker_is_killed(two),
    "node cut off from the control plane": lambda two, _: cut(two, everybody=False),
    "everybody cut off from the control plane": lambda two, _: cut(two, everybody=True),
    "store, ENOSPC": lambda two, _: store_says(two, str(errno.ENOSPC)),
    "store, EIO": lambda two, _: store_says(two, str(errno.EIO)),
    "store hangs": lambda two, _: store_says(two, ""),
    "store is full": store_is_full,
    "slow disk": lambda two, _: store_says(two, str(-SLOW_MILLISECONDS)),
    "clock jumps": lambda two, _: clock_jumps(two),
}
"""By name; a fault gets the uid of the job that runs meanwhile."""
