"""Folders with parts of an audit log: an archive, or `audit` of a data directory.

An archive holds closed segments (`N.log`), a proof beside each (`N.proof`), and `pruned` when older
ones were deleted by a rule. It needs no server and no secret to be verified.

Rules kept here:
* a segment is in an archive once its proof is: the records are durable and were hashed before;
* what says that earlier records are not here any more counts only with its signature.

Called by `appliance audit verify`, `archive` and `prune`.
"""

from __future__ import annotations

import filecmp
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from appliance.core.errors import FailedPrecondition, Stale, Tampered
from appliance.core.files import (
    durable_file,
    last_line,
    make_private_dir,
    named_streams,
    sync_dir,
    write_durably,
)
from appliance.crypto import chain, proofs
from appliance.crypto.chain import CHECKPOINTS, LOG_SUFFIX, Verified
from appliance.crypto.merkle import Tree
from appliance.crypto.proofs import ARCHIVED, PROOF_SUFFIX, PRUNED, SegmentProof
from appliance.crypto.signing import VerifyKey


class ArchiveFolder:
    """A folder to which closed segments were moved; made private if it is new."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.exists():
            make_private_dir(folder)

    def pruned(self) -> bytes:
        """What says that earlier segments were deleted by a rule; empty when none were."""
        path = self.folder / PRUNED
        return path.read_bytes() if path.exists() else b""

    def pruned_size(self) -> int:
        """How many records the log had at the end of what was pruned."""
        return SegmentProof.loads(data, PRUNED).size if (data := self.pruned()) else 0

    def proofs(self) -> list[SegmentProof]:
        """Of its segments, oldest first, but what was pruned. Raises Tampered for what is none."""
        gone = self.pruned_size()
        paths = sorted(self.folder.glob(f"*{PROOF_SUFFIX}"))
        found = [SegmentProof.loads(path.read_bytes(), path.name) for path in paths]
        return [proof for proof in found if proof.size > gone]

    def path_of(self, proof: SegmentProof) -> Path:
        """Where the records of a segment are."""
        return self.folder / chain.segment_name(proof.first)

    def proof_path_of(self, proof: SegmentProof) -> Path:
        """Where its proof is."""
        return self.path_of(proof).with_suffix(PROOF_SUFFIX)

    def holds(self, proof: SegmentProof, begin: Tree) -> bool:
        """Whether a segment is here and is what its proof says.

        Args:
            proof: of the segment.
            begin: the tree of the records before.

        Raises FailedPrecondition when there are other records in its place.
        """
        path, proof_path = self.path_of(proof), self.proof_path_of(proof)
        if not proof_path.exists():
            return False
        try:
            there = SegmentProof.loads(proof_path.read_bytes(), proof_path.name)
        except Tampered:
            # It is damaged, and so proves nothing: all of it is copied again.
            return False
        if (there.size, there.peaks) != (proof.size, proof.peaks):
            raise FailedPrecondition(
                f"{self.folder} holds other records from {proof.first} on, of another appliance or "
                "of this one before a backup was put back: choose another folder"
            )
        tree = begin.copy()
        if not path.exists() or path.stat().st_size != proof.length:
            return False
        with path.open("rb") as stream:
            tree.extend(stream)
        if (tree.size, tree.peaks) != (proof.size, proof.peaks):
            return False
        if there != proof:
            write_durably(proof_path, proof.dumps())
        return True

    def take_in(self, proof: SegmentProof, begin: Tree, pieces: Iterable[bytes]) -> None:
        """Write a segment, and prove it. What does not come to its end leaves nothing.

        Args:
            proof: of the segment.
            begin: the tree of the records before.
            pieces: its records, whole lines in each piece.

        Raises:
            Tampered: the records are not what the proof says.
            Exhausted: the disk is full.
        """
        tree, path = begin.copy(), self.path_of(proof)
        with durable_file(path) as descriptor, os.fdopen(descriptor, "wb", closefd=False) as file:
            for piece in pieces:
                file.write(piece)
                tree.extend(io.BytesIO(piece))
            file.flush()
            if (tree.size, tree.peaks) != (proof.size, proof.peaks):
                raise Tampered(
                    f"what the server sent as records {proof.first} to {proof.size - 1} is not "
                    "what its proof says: nothing was deleted there; look at the log of the "
                    "control plane, or try again if somebody else archives, too",
                    object=path.name,
                )
        write_durably(self.proof_path_of(proof), proof.dumps())

    def last_time(self, proof: SegmentProof) -> datetime:
        """When the last record of a segment was written, as it says."""
        path = self.path_of(proof)
        try:
            last = chain.parsed(last_line(path), proof.size - 1)
            return datetime.fromisoformat(last["time"])
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise FailedPrecondition(
                f"the last record of {path} cannot be read: look with `appliance audit verify`"
            ) from error

    def finish_pruning(self, statement: SegmentProof) -> None:
        """Delete what is left of what was pruned.

        Raises FailedPrecondition when it is something else that lies there.
        """
        paths = sorted(self.folder.glob(f"*{PROOF_SUFFIX}"))
        found = [SegmentProof.loads(path.read_bytes(), path.name) for path in paths]
        left = [proof for proof in found if proof.size <= statement.size]
        if not left:
            return
        if (left[-1].size, left[-1].peaks) != (statement.size, statement.peaks):
            raise FailedPrecondition(
                f"{self.folder} holds records before {statement.size} that are not those that "
                "were pruned: look where they come from, and move them away"
            )
        self.prune(self.pruned())

    def prune(self, statement: bytes) -> int:
        """Delete what a signed statement covers, also what is left of it; how many segments."""
        size = SegmentProof.loads(statement, PRUNED).size
        write_durably(self.folder / PRUNED, statement)
        gone = [
            path
            for path in self.folder.glob(f"*{LOG_SUFFIX}")
            if path.stem.isdecimal() and int(path.stem) < size
        ]
        for path in sorted(gone):
            path.unlink()
        for path in self.folder.glob(f"*{PROOF_SUFFIX}"):
            if path.stem.isdecimal() and int(path.stem) < size:
                path.unlink()
        sync_dir(self.folder)
        return len(gone)


@dataclass
class AuditParts:
    """What a verification reads."""

    segments: dict[str, Path] = field(default_factory=dict)
    notes: list[bytes] = field(default_factory=list)
    statements: list[tuple[str, bytes]] = field(default_factory=list)
    """What says that records before some are not here: what it is signed as, and the proof."""
    goes_on: bool = False
    """Whether the newest records are among them."""
    archives: bool = False
    """Whether earlier ones are: then only what was pruned may be missing."""

    def add_archive(self, folder: Path) -> None:
        """Take in an archive. Raises as `add_folder`."""
        self.archives = True
        self._add_folder(folder, PRUNED)

    def add_folder(self, folder: Path) -> None:
        """Take in the folder `audit` of a data directory.

        Raises Tampered when two copies of a segment differ, FailedPrecondition when there is none.
        """
        # Checkpoints are read before the records: the chain may grow meanwhile.
        checkpoints = folder / CHECKPOINTS
        if checkpoints.exists():
            self.notes += proofs.notes_of(checkpoints.read_bytes())
            self.goes_on = True
        self._add_folder(folder, ARCHIVED)

    def _add_folder(self, folder: Path, statement: str) -> None:
        for path in sorted(folder.glob(f"*{PROOF_SUFFIX}")):
            self.notes += SegmentProof.loads(path.read_bytes(), path.name).notes
        paths = sorted(path for path in folder.glob(f"*{LOG_SUFFIX}") if path.stem.isdecimal())
        if statement == PRUNED:
            # One without its proof is not in the archive: copying it did not come to its end.
            paths = [path for path in paths if path.with_suffix(PROOF_SUFFIX).exists()]
        for path in paths:
            self._add(path.name, path)
        found = (folder / statement).exists()
        if found:
            self.statements.append((statement, (folder / statement).read_bytes()))
        if not paths and not found:
            raise FailedPrecondition(f"{folder} holds no part of an audit log: check the folder")

    def add_export(self, path: Path) -> None:
        """Take in a file of `audit export`, and what it wrote beside it.

        Raises FailedPrecondition when an archive holds its first records.
        """
        with path.open("rb") as stream:
            line = stream.readline(chain.MAX_LINE).rstrip(b"\n")
        first = chain.parsed(line, 0)["sequence"] if line else 0
        if chain.segment_name(first) in self.segments:
            raise FailedPrecondition(
                f"{path} begins with record {first}, which an archive holds too, so neither goes "
                "on where the other ends: verify each alone"
            )
        self._add(chain.segment_name(first), path)
        self.goes_on = True
        beside = statement_beside(path)
        # Left by another export, it says nothing of this one.
        if (
            beside.exists()
            and SegmentProof.loads(data := beside.read_bytes(), beside.name).size == first
        ):
            self.statements.append((ARCHIVED, data))

    def verify(self, key: VerifyKey, older: bytes | None) -> tuple[Verified, str]:
        """Prove it all; what is proved, and the name of the log.

        Raises Tampered, Stale, and FailedPrecondition when something else has to be given too.
        """
        first = older or (self.notes[-1] if self.notes else None)
        if first is None:
            raise FailedPrecondition(
                "without a checkpoint nothing is proved: add --checkpoint with a file of "
                "`appliance audit checkpoint --out FILE`"
            )
        # The note's first line names the log; the signature over it is checked with the key.
        origin = first.partition(b"\n")[0].decode(errors="replace")
        base = self._base(key, origin)
        names = [name for name in sorted(self.segments) if name >= chain.segment_name(base.size)]
        if names and names[0] != chain.segment_name(base.size):
            raise FailedPrecondition(
                f"the records from {base.size} on are missing, before {names[0]}: add --archive "
                "with the folder that they were moved to"
            )
        if older is not None and proofs.size_of(older) < base.size:
            raise FailedPrecondition(
                f"the checkpoint is over {proofs.size_of(older)} records, and what is here begins "
                f"with record {base.size}: add --archive with the folder of those before"
            )
        try:
            streams = named_streams((name, self.segments[name]) for name in names)
            found = chain.verify(streams, self.notes, key, origin, older=older, base=base)
        except Stale as error:
            if self.goes_on:
                raise
            raise FailedPrecondition(
                f"{error.message}. If these are not archived, add --data-dir or --records"
            ) from error
        if not self.goes_on and found.covered < found.size:
            raise Tampered(
                f"records from {found.covered} on are not signed: an archive has no such records",
                object=origin,
                record=found.covered,
            )
        return found, origin

    def _add(self, name: str, path: Path) -> None:
        there = self.segments.setdefault(name, path)
        if there != path and not filecmp.cmp(there, path, shallow=False):
            raise Tampered(f"{there} and {path} differ: one of them was changed", object=name)

    def _base(self, key: VerifyKey, origin: str) -> Tree:
        """The tree of the records before the first to be verified."""
        base = Tree()
        for name, data in self.statements:
            statement = SegmentProof.loads(data, name)
            statement.check(key, f"{origin}/{name}")
            # Beside its archive a log goes back to what was pruned: nothing else may be missing.
            counts = name == PRUNED or not self.archives
            if counts and statement.size > base.size:
                base = statement.tree()
        return base


def statement_beside(export: Path) -> Path:
    """Where `audit export` writes what says that earlier records were archived."""
    return export.with_name(f"{export.name}.{ARCHIVED}")


def begins_of(archived: bytes, listed: Iterable[SegmentProof]) -> list[tuple[SegmentProof, Tree]]:
    """Each proof with the tree of the records before it.

    Args:
        archived: what the server says of records that it does not have any more; empty for none.
        listed: proofs of all closed segments it has, oldest first.

    Raises FailedPrecondition when they do not follow each other.
    """
    tree = SegmentProof.loads(archived, ARCHIVED).tree() if archived else Tree()
    found = []
    for proof in listed:
        if proof.first != tree.size:
            raise FailedPrecondition(
                f"the server lists a segment from record {proof.first} on where record "
                f"{tree.size} comes next: try again"
            )
        found.append((proof, tree))
        tree = proof.tree()
    return found
