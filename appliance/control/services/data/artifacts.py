"""Versions of datasets, tokenizers, models and checkpoints: one way for all of them to come to be.

A version is allocated (row `pending`, identity, data key, folder), written by whoever has its key,
and registered (row `complete`) once it is seen to be whole. Rules kept here:
* what is registered was read back first: manifest authentic under the data key, the expected
  digest and epoch, and the folder holds exactly its files;
* the manifest of a registered version is signed (`manifest.sig`, Ed25519 over the manifest), so
  that it can be told from what somebody with write access to the storage and a stolen data key
  made; digest and signature are checked again before its key is handed out;
* what is dropped loses its row, that is its key, and its files afterwards, by the queue.

The attack: an artifact swapped, rolled back or forged in the object store; an output of a node that
has lost its lease. Called by every service that makes or reads artifacts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, update

from appliance.control.services.common.keys import Keys
from appliance.control.services.data import erasing
from appliance.control.services.data.artifact_rows import (
    CHECKPOINTS,
    COMPLETE,
    PENDING,
    of_artifact,
    version_name,
)
from appliance.control.services.data.storage_tasks import StorageTasks, Task, TaskKind
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.control.store.objects import ObjectStore, new_uid
from appliance.core import names
from appliance.core.artifact_kinds import ONCE
from appliance.core.errors import AlreadyExists, LeaseLost, NotFound, Tampered
from appliance.crypto import statements
from appliance.crypto.artifacts import (
    MANIFEST,
    SIGNATURE,
    ArtifactReader,
    ArtifactWriter,
    manifest_digest,
)
from appliance.crypto.folder import Folder
from appliance.crypto.manifest import MAX_MANIFEST
from appliance.crypto.signing import SigningKey

__all__ = ["CHECKPOINTS", "Artifacts", "Provenance", "Version", "sign_manifest"]

_SIGNATURE_SIZE = 64
_ENOUGH = 10
"""Artifacts that are looked for to know the store: one of them may be lost."""
_artifact = tables.artifact.c
_version = tables.artifact_version.c


@dataclass(frozen=True)
class Version:
    """A version to write or to read: its identity, where it lies, and its data key (secret)."""

    uid: str
    project: str
    kind: str
    artifact: str
    number: int
    folder: str
    digest: str
    key: bytes = field(repr=False)
    slot: str = ""

    @property
    def name(self) -> str:
        """Resource name of the version; of a tokenizer, which has one only, the tokenizer's."""
        return version_name(self.project, self.kind, self.artifact, self.number)


@dataclass(frozen=True)
class Provenance:
    """Who or what made a version.

    A person's name; the job's uid, what it was made from (name, uid), and which output of the job.
    """

    creator: str
    job: str | None = None
    inputs: tuple[tuple[str, str], ...] = ()
    slot: str = ""


class Artifacts:
    """Allocates, registers, opens and drops versions.

    Args:
        database: the state.
        keys: makes and opens data keys.
        store: where the folders lie.
        tasks: what is to be deleted there.
        signer: signs manifests.
        clock: the time, aware.
    """

    def __init__(  # noqa: PLR0913  # the parts of the control plane it acts on
        self,
        database: Database,
        keys: Keys,
        store: ObjectStore,
        tasks: StorageTasks,
        signer: SigningKey,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._keys = keys
        self.store = store
        self._tasks = tasks
        self._signer = signer
        self._clock = clock

    def allocate(
        self, transaction: Transaction, project: str, kind: str, artifact: str, made: Provenance
    ) -> Version:
        """A pending version with a new identity and a new key; the artifact is made when missing.

        `kind` is the resource that it is a version of. Raises AlreadyExists for a second version of
        one that has only one.
        """
        now, uid = self._clock(), new_uid()
        data_key = self._keys.create_data_key(transaction, project, uid)
        _ensure(transaction, (project, kind, artifact), made, uid, now)
        number = 1 + _last_number(transaction, project, kind, artifact)
        if kind in ONCE and number > 1:
            name = version_name(project, kind, artifact, number)
            raise AlreadyExists(f"{name} exists already: choose another name", name=name)
        folder = self.store.folder(project, uid)
        transaction.run(
            insert(tables.artifact_version).values(
                uid=uid,
                project=project,
                kind=kind,
                artifact=artifact,
                number=number,
                state=PENDING,
                key_version=data_key.key_version,
                folder=folder,
                creator=made.creator,
                job=made.job,
                slot=made.slot,
                inputs=[name for name, _ in made.inputs],
                input_uids=[of_input for _, of_input in made.inputs],
                create_time=now,
            )
        )
        self._keys.keep(transaction, uid, data_key)
        return Version(uid, project, kind, artifact, number, folder, "", data_key.key, made.slot)

    def writer(self, version: Version, *, epoch: int = 0) -> ArtifactWriter:
        """A writer for a pending version. Raises Unavailable when the store is not there."""
        self.store.check_mounted()
        return ArtifactWriter(
            self.store.filesystem,
            self.store.path(version.folder),
            version.key,
            version.project,
            version.uid,
            epoch=epoch,
        )

    def verify(self, version: Version, digest: str, *, epoch: int = 0) -> ArtifactReader:
        """A reader of what was written for a pending version, once it is seen to be whole.

        Raises:
            Tampered: it is not whole, or not what `digest` says.
            LeaseLost: another epoch wrote it.
        """
        reader = ArtifactReader(
            self.store.filesystem,
            self.store.path(version.folder),
            version.key,
            version.project,
            version.uid,
            digest=digest,
        )
        if reader.epoch != epoch:
            raise LeaseLost(f"epoch {reader.epoch} wrote {version.name}, not {epoch}")
        return reader

    def sign(self, version: Version, digest: str) -> None:
        """Sign the manifest of a verified version, beside it."""
        sign_manifest(self._folder(version.folder), self._signer, digest, version.uid)

    def register(
        self,
        transaction: Transaction,
        version: Version,
        reader: ArtifactReader,
        facts: Mapping[str, Any],
        origin: Mapping[str, Any],
    ) -> None:
        """A verified, signed version is complete from here on.

        Args:
            transaction: in which it appears.
            version: pending until now.
            reader: of it, verified.
            facts: shown with it.
            origin: what made it, of what, and how: kept as a signed statement about its digest.
        """
        changed = transaction.run(
            update(tables.artifact_version)
            .where(_version.uid == version.uid, _version.state == PENDING)
            .values(
                state=COMPLETE,
                manifest_digest=reader.digest,
                facts=dict(facts),
                statement=statements.sign(self._signer, version.name, reader.digest, origin),
                size_bytes=sum(reader.entry(file).plain_size for file in reader.files()),
                complete_time=self._clock(),
            )
        )
        if changed != 1:
            raise LeaseLost(f"{version.name} was given up while it was being made")

    def read(self, state: Reading, row: Row[Any]) -> Version:
        """The version of a row, with its key opened. Raises Tampered for a changed statement."""
        key = self._keys.data_key(state, row.project, row.uid, row.key_version)
        if row.statement:
            name = version_name(row.project, row.kind, row.artifact, row.number)
            statements.verify(self._signer.verify_key, row.statement, name, row.manifest_digest)
        return Version(
            row.uid,
            row.project,
            row.kind,
            row.artifact,
            row.number,
            row.folder,
            row.manifest_digest,
            key,
            row.slot,
        )

    def open(self, row: Row[Any]) -> ArtifactReader:
        """A reader of a complete version: digest on record, signature of ours.

        Raises Tampered or Stale naming the object.
        """
        with self._database.read() as state:
            version = self.read(state, row)
        return self.open_version(version)

    def open_version(self, version: Version) -> ArtifactReader:
        """As `open`, for a version whose key is open."""
        path = self.store.path(version.folder)
        reader = ArtifactReader(
            self.store.filesystem,
            path,
            version.key,
            version.project,
            version.uid,
            digest=version.digest,
        )
        folder = self._folder(version.folder)
        try:
            signature = _read(folder, SIGNATURE, _SIGNATURE_SIZE)
            manifest = _read(folder, MANIFEST, MAX_MANIFEST)
            self._signer.verify_key.verify(manifest, signature)
        except (NotFound, Tampered) as error:
            raise Tampered(
                f"{version.name} is refused: its manifest is not signed by this appliance. "
                "Restore it from a backup or make it again.",
                project=version.project,
                object=version.uid,
            ) from error
        return reader

    def erase(self, transaction: Transaction, uids: Iterable[str]) -> None:
        """Delete versions, complete or not, with their keys; their files go soon.

        The one way to do that: a series of checkpoints goes so with its job. See
        `services.data.erasing`.

        Args:
            transaction: in which they go, of this database.
            uids: of the versions, which nothing may use; one that is not there is passed by.
        """
        found = (
            transaction.first(select(tables.artifact_version).where(_version.uid == uid))
            for uid in uids
        )
        rows = [row for row in found if row is not None]
        erasing.erase(transaction, self._tasks, rows, self._database.generation + 1)

    def erase_project(self, transaction: Transaction, project: str) -> None:
        """Delete the keys of an empty project; what a job left behind goes with them."""
        left = transaction.all(select(_version.uid).where(_version.project == project))
        self.erase(transaction, [row.uid for row in left])
        transaction.run(delete(tables.artifact).where(_artifact.project == project))
        keys = tables.project_key
        transaction.run(delete(keys).where(keys.c.project == project))
        gone = [("", names.project(project), "")]
        erasing.order_erasure(transaction, self._tasks, gone, self._database.generation + 1)

    def drop(self, transaction: Transaction, rows: Iterable[Row[Any]]) -> None:
        """Forget versions that are still pending: their keys now, their files soon."""
        pending = select(_version.uid).where(_version.state == PENDING)
        found = [transaction.value(pending.where(_version.uid == row.uid)) for row in rows]
        self.erase(transaction, [uid for uid in found if uid is not None])

    def give_up(self, version: Version) -> None:
        """Drop one pending version, in a transaction of its own."""
        with self._database.write() as transaction:
            rows = select(tables.artifact_version).where(_version.uid == version.uid)
            self.drop(transaction, transaction.all(rows))

    def delete_folders(self, folders: Iterable[str]) -> None:
        """Let folders be deleted that no row names."""
        with self._database.write() as transaction:
            for folder in folders:
                self._tasks.add(transaction, TaskKind.DELETE_FOLDER, folder)

    def drop_uploads(self) -> None:
        """At start: drop uploads in one stream that were cut; those by part go on."""
        going_on = select(tables.upload.c.version)
        with self._database.write() as transaction:
            stale = transaction.all(
                select(tables.artifact_version).where(
                    _version.state == PENDING,
                    _version.job.is_(None),
                    _version.uid.not_in(going_on),
                )
            )
            self.drop(transaction, stale)
            self._tasks.add(transaction, TaskKind.DELETE_UNKNOWN, "")

    def delete_unknown(self, task: Task) -> None:
        """Mark the store as ours, then delete half-made folders that no row knows. Raises OSError.

        A whole artifact without a row is left alone: perhaps the state is the wrong backup.
        """
        del task
        complete = select(_version.folder).where(_version.state == COMPLETE)
        with self._database.read() as state:
            newest = state.all(complete.order_by(_version.complete_time.desc()).limit(_ENOUGH))
        self.store.mark([row.folder for row in newest])
        with self._database.read() as state:
            projects = [row.id for row in state.all(select(tables.project.c.id))]
        # Before the rows are read: a folder is made after its row.
        folders = [folder for project in projects for folder in self.store.folders(project)]
        with self._database.read() as state:
            known = {row.folder for row in state.all(select(_version.folder))}
            known |= {row.folder for row in state.all(select(tables.upload.c.folder))}
        for folder in folders:
            if folder not in known and not self.store.holds_whole(folder):
                self.store.delete(folder)

    def _folder(self, folder: str) -> Folder:
        return Folder(self.store.filesystem, self.store.path(folder))


def sign_manifest(folder: Folder, signer: SigningKey, digest: str, uid: str) -> None:
    """Sign the manifest in a folder, beside it.

    Args:
        folder: of a verified artifact.
        signer: of this appliance.
        digest: of the manifest that was verified.
        uid: of the artifact.

    Raises:
        Tampered: it is not that manifest any more.
    """
    manifest = _read(folder, MANIFEST, MAX_MANIFEST)
    if manifest_digest(manifest) != digest:
        raise Tampered("its manifest changed while it was registered", object=uid)
    new = folder.create(SIGNATURE)
    try:
        new.write(signer.sign(manifest))
        new.commit()
    except BaseException:
        new.discard()
        raise


def _last_number(state: Reading, project: str, kind: str, artifact: str) -> int:
    """The highest number that a version of an artifact has, or had before it was deleted."""
    there = select(func.max(_version.number)).where(*of_artifact(project, kind, artifact))
    deleted = select(_artifact.deleted_number).where(
        _artifact.project == project, _artifact.kind == kind, _artifact.id == artifact
    )
    return max(state.value(there) or 0, state.value(deleted) or 0)


def _ensure(
    transaction: Transaction,
    artifact: tuple[str, str, str],
    made: Provenance,
    uid: str,
    now: datetime,
) -> None:
    """The row of the dataset, tokenizer, model or series that a version belongs to."""
    project, kind, identifier = artifact
    known = select(_artifact.id).where(
        _artifact.project == project, _artifact.kind == kind, _artifact.id == identifier
    )
    if transaction.first(known) is None:
        transaction.run(
            insert(tables.artifact).values(
                project=project,
                kind=kind,
                id=identifier,
                creator=made.creator,
                origin=made.job or uid,
                create_time=now,
            )
        )


def _read(folder: Folder, file: str, most: int) -> bytes:
    """A small file of a folder. Raises NotFound."""
    parts: list[bytes] = []
    left = most + 1
    with folder.open(file) as raw:
        while left and (part := raw.read(left)):
            parts.append(part)
            left -= len(part)
    return b"".join(parts)
