"""Folders with parts of an audit log: an archive, or `audit` of a data directory.

An archive holds closed segments (`N.log`), a proof beside each (`N.proof`), and `pruned` when older
ones were deleted by a rule. It needs no server and no secret to be verified.

Rules kept here:
* a segment is in an archive once its proof is: the records are durable and were hashed before;
* what says that earlier records are not here any more counts only with its signature.

Called by `appliance audit verify`, `archive` and `prune`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from appliance.core.errors import FailedPrecondition, InvalidInput, Tampered
from appliance.core.files import full_disk_is_exhausted, make_private_dir, sync_dir, write_durably
from appliance.crypto import chain, proofs
from appliance.crypto.chain import CHECKPOINTS, LOG_SUFFIX, Verified
from appliance.crypto.merkle import Tree, leaf_hash
from appliance.crypto.proofs import ARCHIVED, PROOF_SUFFIX, PRUNED, Proof
from appliance.crypto.signing import VerifyKey


class Archive:
    """A folder to which closed segments were moved; made private if it is new."""

    def __init__(self, folder: Path) -> None:
        self.folder = make_private_dir(folder)

    def proofs(self) -> list[Proof]:
        """Of its segments, oldest first. Raises Tampered for what is none."""
        paths = sorted(self.folder.glob(f"*{PROOF_SUFFIX}"))
        return [Proof.loads(path.read_bytes(), path.name) for path in paths]

    def path_of(self, proof: Proof) -> Path:
        """Where the records of a segment are."""
        return self.folder / chain.segment_name(proof.first)

    def holds(self, proof: Proof, begin: Tree) -> bool:
        """Whether a segment is here and is what its proof says.

        Args:
            proof: of the segment.
            begin: the tree of the records before.
        """
        path = self.path_of(proof)
        if not path.with_suffix(PROOF_SUFFIX).exists() or not path.exists():
            return False
        tree = begin.copy()
        with path.open("rb") as stream:
            for line in stream:
                tree.append(leaf_hash(line.removesuffix(b"\n")))
        return (tree.size, tree.peaks) == (proof.size, proof.peaks)

    def take_in(self, proof: Proof, begin: Tree, pieces: Iterable[bytes]) -> None:
        """Write a segment, and prove it.

        Args:
            proof: of the segment.
            begin: the tree of the records before.
            pieces: its records, whole lines in each piece.

        Raises:
            Tampered: the records are not what the proof says.
            Exhausted: the disk is full.
        """
        tree, path = begin.copy(), self.path_of(proof)
        with full_disk_is_exhausted(path):
            with path.open("wb") as file:
                for piece in pieces:
                    file.write(piece)
                    for line in piece.splitlines():
                        tree.append(leaf_hash(line))
                file.flush()
                os.fsync(file.fileno())
            sync_dir(self.folder)
        if (tree.size, tree.peaks) != (proof.size, proof.peaks):
            raise Tampered(
                f"what the server sent as records {proof.first} to {proof.size - 1} is not what "
                "its proof says: nothing was deleted there; look at the log of the control plane",
                object=path.name,
            )
        write_durably(path.with_suffix(PROOF_SUFFIX), proof.dumps())

    def last_time(self, proof: Proof) -> str:
        """When the last record of a segment was written, as it says."""
        with self.path_of(proof).open("rb") as stream:
            stream.seek(max(0, proof.length - chain.LONGEST_LINE))
            last = stream.read().rstrip(b"\n").rpartition(b"\n")[2]
        return str(chain.parsed(last, proof.size - 1)["time"])

    def prune(self, statement: bytes) -> int:
        """Delete what a signed statement covers; how many segments."""
        size = Proof.loads(statement, PRUNED).size
        gone = [proof for proof in self.proofs() if proof.size <= size]
        write_durably(self.folder / PRUNED, statement)
        for proof in gone:
            self.path_of(proof).unlink(missing_ok=True)
            self.path_of(proof).with_suffix(PROOF_SUFFIX).unlink()
        sync_dir(self.folder)
        return len(gone)


@dataclass
class Parts:
    """What a verification reads."""

    segments: dict[str, Path] = field(default_factory=dict)
    notes: list[bytes] = field(default_factory=list)
    base: tuple[bytes, str] = (b"", "")
    """What says that the records before are not here, and what it is signed as."""

    def add_folder(self, folder: Path) -> None:
        """Take in an archive, or the folder `audit` of a data directory."""
        # Checkpoints are read before the records: the chain may grow meanwhile.
        checkpoints = folder / CHECKPOINTS
        if checkpoints.exists():
            self.notes += proofs.notes_of(checkpoints.read_bytes())
        for path in sorted(folder.glob(f"*{PROOF_SUFFIX}")):
            self.notes += Proof.loads(path.read_bytes(), path.name).notes
        for path in sorted(folder.glob(f"*{LOG_SUFFIX}")):
            self.segments[path.name] = path
        for name in (ARCHIVED, PRUNED):
            if (folder / name).exists() and not self.base[0]:
                self.base = (folder / name).read_bytes(), name

    def add_export(self, path: Path) -> None:
        """Take in a file of `audit export`."""
        with path.open("rb") as stream:
            line = stream.readline(chain.LONGEST_LINE).rstrip(b"\n")
        first = chain.parsed(line, 0)["sequence"] if line else 0
        self.segments[chain.segment_name(first)] = path

    def verify(self, key: VerifyKey, older: bytes | None) -> tuple[Verified, str]:
        """Prove it all; what is proved, and the name of the log.

        Raises Tampered, Stale, and FailedPrecondition when something else has to be given too.
        """
        first = older or (self.notes[-1] if self.notes else None)
        if first is None:
            raise FailedPrecondition(
                "without a checkpoint nothing is proved: add --checkpoint with a file of "
                "`appliance audit checkpoint --out`"
            )
        # The note's first line names the log; the signature over it is checked with the key.
        origin = first.partition(b"\n")[0].decode(errors="replace")
        base = self._base(key, origin)
        if self.segments and min(self.segments) != chain.segment_name(base.size):
            raise FailedPrecondition(
                f"the records from {base.size} on are missing, before {min(self.segments)}: add "
                "--archive with the folder that they were moved to"
            )
        if older is not None and proofs.size_of(older) < base.size:
            raise FailedPrecondition(
                f"the checkpoint is over {proofs.size_of(older)} records, and what is here begins "
                f"with record {base.size}: add --archive with the folder of those before"
            )
        with ExitStack() as stack:
            streams = self._streams(stack)
            found = chain.verify(streams, self.notes, key, origin, older=older, base=base)
        return found, origin

    def _base(self, key: VerifyKey, origin: str) -> Tree:
        data, name = self.base
        if not data:
            return Tree()
        statement = Proof.loads(data, name)
        statement.check(key, f"{origin}/{name}")
        # Records of before the statement may be here, too: then they are verified with the rest.
        is_first = min(self.segments, default="") >= chain.segment_name(statement.size)
        return statement.tree() if is_first or not self.segments else Tree()

    def _streams(self, stack: ExitStack) -> Iterator[tuple[str, BinaryIO]]:
        for name in sorted(self.segments):
            stream = stack.enter_context(self.segments[name].open("rb"))
            yield name, stream
            stream.close()


def begins_of(archived: bytes, listed: Iterable[Proof]) -> list[tuple[Proof, Tree]]:
    """Each proof with the tree of the records before it.

    Args:
        archived: what the server says of records that it does not have any more; empty for none.
        listed: proofs of all closed segments it has, oldest first.

    Raises InvalidInput when they do not follow each other.
    """
    tree = Proof.loads(archived, ARCHIVED).tree() if archived else Tree()
    found = []
    for proof in listed:
        if proof.first != tree.size:
            raise InvalidInput(
                f"the server lists a segment from record {proof.first} on where record "
                f"{tree.size} comes next: try again"
            )
        found.append((proof, tree))
        tree = proof.tree()
    return found
