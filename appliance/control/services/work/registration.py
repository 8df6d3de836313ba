"""Jobs whose ranks are done: what they made is verified, signed and registered.

A job that is REGISTERING has work of hours behind it. Rules kept here:
* what was made is never thrown away because the storage, the disk or the audit log could not take a
  byte now: that is tried again, less and less often, until it succeeds or somebody cancels the job;
* only what is wrong with an output itself ends the job: it was changed, or is not what its slot
  holds;
* a job has succeeded when every byte of every output was read back and verified, and it is signed;
  what a storage has lost is found while the job can still be resumed; then all outputs appear
  and the job ends in one transaction, and the audit log says which. Doing it again after a kill at
  any moment changes nothing but the time it takes;
* facts of outputs are read from the sealed files, not taken from a report;
* with each output goes a signed statement of what it was made of, and how.

Called by the storage worker.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

import rfc8785
from sqlalchemy import Row

from appliance.control.audit.system import Records
from appliance.control.events import Events
from appliance.control.services.data import outputs
from appliance.control.services.data.artifact_rows import pending_of
from appliance.control.services.data.artifacts import Artifacts, Version
from appliance.control.services.data.storage_tasks import StorageTasks, Task, sentence_of
from appliance.control.services.work import job_rows
from appliance.control.services.work.run_reports import MAX_MESSAGE
from appliance.control.services.work.runs import WRONG, Runs
from appliance.control.store.database import Database, Reading
from appliance.core import names
from appliance.core.errors import (
    ApplianceError,
    FailedPrecondition,
    LeaseLost,
    NotFound,
    Tampered,
    Unavailable,
)
from appliance.core.jobs import JobState
from appliance.crypto.artifacts import ArtifactReader
from appliance.kinds import kind_of

LOOK_SECONDS = 1.0
"""How often it is looked whether the job was cancelled while its output is read."""
_logger = logging.getLogger(__name__)

Registered = tuple[Version, ArtifactReader, dict[str, Any]]


class Registration:
    """Registers what jobs have made."""

    def __init__(  # noqa: PLR0913  # the parts of the control plane it acts on
        self,
        database: Database,
        artifacts: Artifacts,
        tasks: StorageTasks,
        runs: Runs,
        events: Events,
        records: Records,
        clock: Callable[[], datetime],
        stopping: threading.Event,
        monotonic: Callable[[], float],
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._tasks = tasks
        self._runs = runs
        self._events = events
        self._records = records
        self._clock = clock
        self._stopping = stopping
        self._monotonic = monotonic

    def register(self, task: Task) -> None:
        """Register what a job made.

        What is wrong with an output ends the job. Raises ApplianceError, OSError when it cannot be
        done now; then the job says so.
        """
        with self._database.read() as state:
            row = job_rows.by_uid(state, task.subject)
        if row is None or row.state != JobState.REGISTERING:
            return
        try:
            self._register(row)
        except LeaseLost as error:
            _logger.info("job %s is not registered any more: %s", row.uid, error.message)
        except WRONG as error:
            _logger.warning("an output of job %s is refused: %s", row.uid, error.message)
            # The sentence quotes what a job wrote: as long as other reasons of a job may be.
            why = f"an output is refused: {error.message}"[:MAX_MESSAGE]
            self._runs.fail(row, error.reason, why)
        except (ApplianceError, OSError) as error:
            self._say(row, task, sentence_of(error))
            raise

    def _register(self, row: Row[Any]) -> None:
        """Verify, sign and register every output of a job; then it has succeeded."""
        self._records.check()
        made = self._made(row)
        with self._database.read() as state:
            origin = _origin(state, row)
        with self._database.write() as transaction:
            for version, reader, facts in made.values():
                self._artifacts.register(transaction, version, reader, facts, origin)
            self._runs.end_in(
                transaction,
                row,
                JobState.SUCCEEDED,
                message="",
                outputs={slot: version.uid for slot, (version, _, _) in made.items()},
                end_time=self._clock(),
            )
            # What appears is in the audit log before it appears.
            versions = {version.name: version.digest for version, _, _ in made.values()}
            self._records.record("job.succeeded", job_rows.name_of(row), outputs=versions)

    def _made(self, row: Row[Any]) -> dict[str, Registered]:
        """Every output, verified and signed, by slot."""
        with self._database.read() as state:
            rows = {found.slot: found for found in pending_of(state, row.uid)}
            found = {slot: self._artifacts.read(state, each) for slot, each in rows.items()}
        made: dict[str, Registered] = {}
        wanted = kind_of(row.kind).outputs_of(job_rows.spec_of(row))
        for slot, output in wanted.items():
            version = found.get(slot)
            if version is None or not version.digest:
                raise FailedPrecondition(f"the job ended well, but made no {slot}")
            try:
                reader = self._artifacts.verify(version, version.digest, epoch=row.epoch)
            except LeaseLost as error:
                # Another epoch wrote it: here that is no question of time.
                raise Tampered(error.message, object=version.uid) from error
            facts = outputs.facts_of(output.kind, reader, wanted.values())
            reader.read_through(self._looks(row))
            self._artifacts.sign(version, version.digest)
            made[slot] = (version, reader, facts)
        return made

    def _looks(self, row: Row[Any]) -> Callable[[], None]:
        """Raises when reading on is of no use: at a stop, or when the job was cancelled.

        Of one reading: others go on at the same time.
        """
        looked = float("-inf")

        def look() -> None:
            nonlocal looked
            if self._stopping.is_set():
                raise Unavailable("the control plane was stopped while the output was read")
            now = self._monotonic()
            if now - looked < LOOK_SECONDS:
                return
            looked = now
            with self._database.read() as state:
                found = job_rows.by_uid(state, row.uid)
            if found is None or found.state != JobState.REGISTERING:
                raise LeaseLost("the job was cancelled")

        return look

    def _say(self, row: Row[Any], task: Task, why: str) -> None:
        """Say why it has not worked yet, and when it is tried again."""
        with self._database.write() as transaction:
            job_rows.change(
                transaction,
                self._events,
                row,
                message=f"done, and to be registered as soon as that works: {why}; tried again at"
                f" {self._tasks.next_try(task):%H:%M:%S} UTC",
            )


def _origin(state: Reading, row: Row[Any]) -> dict[str, Any]:
    """What is stated of the outputs of a job: kind, inputs with their digests, spec, where."""
    read = dict.fromkeys(kind_of(row.kind).inputs_of(job_rows.spec_of(row)).values())
    uids = row.inputs
    return {
        "kind": row.kind,
        "job": {"name": job_rows.name_of(row), "uid": row.uid, "epoch": row.epoch},
        "nodes": [names.node(share["node"]) for share in row.placement],
        "inputs": [_stated(state, name, kind, uids.get(name, "")) for name, kind in read],
        "spec": {"digest": {"sha256": hashlib.sha256(rfc8785.dumps(row.spec)).hexdigest()}},
    }


def _stated(state: Reading, name: str, kind: str, uid: str) -> dict[str, Any]:
    """An input; without its digest when it is a checkpoint that has been deleted since."""
    stated: dict[str, Any] = {"name": name, "uid": uid}
    with contextlib.suppress(NotFound):
        stated["digest"] = {"sha256": job_rows.digest_of(state, kind, uid)}
    return stated
