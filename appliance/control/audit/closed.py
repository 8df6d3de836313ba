"""The closed segments of the audit log: files that never change again, a proof beside each.

Rules kept here:
* the segment `N.log` is closed once `N.proof` stands beside it; a proof is written whole or not at
  all;
* segments follow each other without a gap, from record 0 on, or from where the signed file
  `archived` says that what came before was archived;
* each proof counts by its own signature; one that is damaged, missing or of another length than its
  segment proves nothing, and neither do those after it: their records are verified as those that
  are not closed, and closed anew;
* no segment is read as a whole when the log opens, so a start costs a signature for each 65,536
  records, however old the log is. Each one is verified alone, later;
* which line begins where is known of a few segments at a time, so memory does not grow either.

The attack: a closed segment edited, exchanged or deleted where nobody reads it. Called by
`segments` (from the thread that writes) and by readers in threads of their own.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.control.audit.growing_file import FileIdentity, expect, file_identity
from appliance.core.errors import Exhausted, FailedPrecondition, Tampered
from appliance.core.files import last_line, named_streams, sync_dir, write_durably
from appliance.crypto import chain, proofs
from appliance.crypto.merkle import Tree, leaf_hash
from appliance.crypto.proofs import ARCHIVED, PROOF_SUFFIX, SegmentProof
from appliance.crypto.signing import SignedNote, VerifyKey

INDEXED = 4
"""Segments of which it is known where their lines begin: at most 0.5 MiB each."""
PAUSE_RECORDS = 512
LOOKED_AT = 256
"""Segments at which each look looks, in turn."""
_logger = logging.getLogger(__name__)


def files_of(folder: Path) -> list[Path]:
    """The segments in a folder, in the order of their records."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(chain.LOG_SUFFIX))


def first_of(path: Path) -> int:
    """The first record of a segment, as its name says. Raises Tampered when it says none."""
    if path.stem.isdecimal() and path.name == chain.segment_name(int(path.stem)):
        return int(path.stem)
    raise Tampered(f"{path.name} is no segment of the audit log", object=path.name)


@dataclass(frozen=True)
class Segment:
    """A closed segment: its file, the trees at its begin and end, and how the file looked."""

    path: Path
    begin: Tree
    end: Tree
    look: FileIdentity

    @property
    def first(self) -> int:
        """Its first record."""
        return self.begin.size

    @property
    def proof_path(self) -> Path:
        """Where its proof stands."""
        return self.path.with_suffix(PROOF_SUFFIX)

    def last_record(self) -> bytes:
        """Its last line. Raises FailedPrecondition when it was archived."""
        try:
            return last_line(self.path)
        except FileNotFoundError as error:
            raise was_archived(self.first) from error

    def proof(self) -> SegmentProof:
        """Its proof, as it is on the disk. Raises Tampered."""
        try:
            return SegmentProof.loads(self.proof_path.read_bytes(), self.proof_path.name)
        except FileNotFoundError as error:
            name = self.proof_path.name
            raise Tampered(
                f"{name} is missing: the next start makes it anew", object=name
            ) from error


class Closed:
    """The closed segments of one folder.

    Args:
        folder: of the log.
        key: of the checkpoints.
        origin: name of the log in its checkpoints.

    Raises Tampered when a segment is missing, or the file `archived` is not what was signed.
    """

    def __init__(self, folder: Path, key: VerifyKey, origin: str) -> None:
        self._folder, self._key, self._origin = folder, key, origin
        self._lock = threading.Lock()
        self._starts: OrderedDict[int, array[int]] = OrderedDict()
        self._segments: list[Segment] = []
        self._next_look = 0
        self.statement = b""
        """What says, signed, that records were archived; empty when none were."""
        self.start = self._read_archived()
        """The tree of the records that were archived: none in a log that was not."""
        self._finish_archiving()
        # What has no proof, and what follows it, is not closed: it is verified, and closed anew.
        for path in sorted(folder.glob(f"*{PROOF_SUFFIX}")):
            if not self._take_in(path):
                break

    @property
    def first(self) -> int:
        """The first record that is here."""
        return self.start.size

    @property
    def end(self) -> Tree:
        """The tree at the end of the newest closed segment."""
        return self._segments[-1].end if self._segments else self.start

    @property
    def segments(self) -> Sequence[Segment]:
        """All of them, oldest first."""
        return tuple(self._segments)

    def segment_of(self, record: int) -> Segment | None:
        """The segment with a record; None when it is archived, or not closed."""
        held = (each for each in self._segments if each.first <= record < each.end.size)
        return next(held, None)

    def last_leaf(self) -> str | None:
        """Leaf hash of the last closed record, hexadecimal; None when there is none here.

        As it lies there: whoever relies on it verifies the segment.
        """
        if not self._segments:
            return None
        return leaf_hash(self._segments[-1].last_record()).hex()

    def add(self, path: Path, end: Tree, notes: Sequence[bytes], last: bytes) -> None:
        """Close a segment: its proof becomes durable.

        Args:
            path: of the segment.
            end: the tree at its end.
            notes: signed checkpoints, of which some are kept; what is not signed is not.
            last: the signed checkpoint over all records of `end`.

        Raises OSError; then it is not closed.
        """
        segment = Segment(path, self.end, end.copy(), FileIdentity.of(path.stat()))
        some = proofs.thinned(notes, segment.first, end.size)
        kept = [*filter(self._is_signed, some), last]
        proof = SegmentProof.of(segment.first, segment.look.size, end, kept)
        proof.check(self._key, self._origin)
        try:
            write(segment.proof_path, proof.dumps())
        except OSError:
            # It may be in its place already, and not durable; records go on in this segment.
            segment.proof_path.unlink(missing_ok=True)
            raise
        with self._lock:
            self._segments = [*self._segments, segment]

    def check_some(self) -> None:
        """Raise Tampered when a segment is not as it was; some of them each time, in turn."""
        # Held meanwhile, so that what is being archived is not missed.
        with self._lock:
            count = min(LOOKED_AT, len(self._segments))
            for index in range(self._next_look, self._next_look + count):
                segment = self._segments[index % len(self._segments)]
                expect(segment.path, segment.look)
            self._next_look = (self._next_look + count) % max(len(self._segments), 1)

    def lines(self, start: int, stop: int) -> Iterator[bytes]:
        """Lines of the records `start` to before `stop`, all of them here, without line ends."""
        segments = self._segments
        while start < stop:
            index = bisect.bisect_right(segments, start, key=lambda segment: segment.first) - 1
            if index < 0:
                raise was_archived(start)
            segment = segments[index]
            upto = min(stop, segment.end.size)
            try:
                with segment.path.open("rb") as stream:
                    stream.seek(self._starts_of(segment)[start - segment.first])
                    while start < upto:
                        yield stream.readline().rstrip(b"\n")
                        start += 1
            except FileNotFoundError as error:
                raise was_archived(start) from error

    def root_at(self, size: int) -> bytes | None:
        """Root over the first `size` records; None when they end before what is here."""
        if size < self.first:
            return None
        tree = self.start
        for segment in self._segments:
            if segment.end.size > size:
                tree = tree.copy()
                tree.extend(self.lines(tree.size, size))
                break
            tree = segment.end
        return tree.root()

    def verify(self, segment: Segment, pause: Callable[[], None] = lambda: None) -> None:
        """Prove one of `segments`: read it as a whole.

        Args:
            segment: the one.
            pause: called every few hundred records.

        Raises:
            Tampered: it is not what was written; `metadata["record"]` is the first bad record.
            FileNotFoundError: its file is gone.
        """
        proof = segment.proof()
        try:
            proof.check(self._key, self._origin)
        except Tampered as error:
            name = segment.proof_path.name
            raise Tampered(
                f"{name} is damaged: stop the control plane, remove it, and start again, which "
                "makes it anew",
                object=name,
            ) from error
        tree = segment.begin.copy()
        with segment.path.open("rb") as stream:
            while lines := list(itertools.islice(stream, PAUSE_RECORDS)):
                tree.extend(lines)
                pause()
        if (tree.size, tree.root()) != (proof.size, proof.tree().root()):
            self._name_bad_record(segment, proof)

    def archive(self, size: int, sign: Callable[[Segment], SegmentProof]) -> None:
        """Forget the segments up to one that ends at a size, and delete their files.

        Args:
            size: of the log at the end of a segment before the newest, or of what was archived.
            sign: makes the statement of that segment, or refuses.

        Raises:
            FailedPrecondition: no closed segment but the newest ends there.
            OSError: some files may be left; the next start deletes them.
        """
        with self._lock:
            if size <= self.first:
                return
            ends = [segment.end.size for segment in self._segments[:-1]]
            if size not in ends:
                raise FailedPrecondition(
                    f"no closed segment before the newest ends at {size} records: list the "
                    "segments, and archive up to the end of one of them"
                )
            count = ends.index(size) + 1
            statement = sign(self._segments[count - 1])
            data, path = statement.dumps(), self._folder / ARCHIVED
            try:
                write(path, data)
            except OSError:
                # In its place already, and not known to be durable: it counts, and nothing is
                # deleted before the next start reads it.
                if path.exists() and path.read_bytes() == data:
                    self._forget(count, statement)
                raise
            gone = self._forget(count, statement)
        for segment in gone:
            _delete(segment.path)
        sync_dir(self._folder)

    def _forget(self, count: int, statement: SegmentProof) -> list[Segment]:
        gone, self._segments = self._segments[:count], self._segments[count:]
        self.start, self._next_look = statement.tree(), 0
        self.statement = statement.dumps()
        return gone

    def _read_archived(self) -> Tree:
        path = self._folder / ARCHIVED
        self.statement = data = path.read_bytes() if path.exists() else b""
        if not data:
            return Tree()
        statement = SegmentProof.loads(data, ARCHIVED)
        statement.check(self._key, f"{self._origin}/{ARCHIVED}")
        return statement.tree()

    def _take_in(self, path: Path) -> bool:
        """Take in the proof of a segment that was closed before; False when it proves nothing.

        Raises Tampered when there is a proof, and no segment.
        """
        file = path.with_suffix(chain.LOG_SUFFIX)
        try:
            proof = SegmentProof.loads(path.read_bytes(), path.name)
            proof.check(self._key, self._origin)
        except Tampered:
            _logger.warning(
                "%s is damaged: its records are verified, and it is made anew", path.name
            )
            return False
        if first_of(file) != proof.first or proof.first != self.end.size:
            return False
        look = file_identity(file)
        if look is None:
            raise chain.bad_record(proof.first, f"{file.name} is missing: put it back as it was")
        if look.size != proof.length:
            return False
        self._segments.append(Segment(file, self.end, proof.tree(), look))
        return True

    def _finish_archiving(self) -> None:
        """Delete what was archived, when that did not come to its end."""
        for path in files_of(self._folder):
            if first_of(path) < self.first:
                path.unlink()
        for path in self._folder.glob(f"*{PROOF_SUFFIX}"):
            if first_of(path.with_suffix(chain.LOG_SUFFIX)) < self.first:
                path.unlink()

    def _is_signed(self, note: bytes) -> bool:
        try:
            SignedNote.open(note, self._key, self._origin)
        except Tampered:
            return False
        return True

    def _name_bad_record(self, segment: Segment, proof: SegmentProof) -> None:
        """Raise Tampered for a segment that is not what its proof says."""
        streams = named_streams([(segment.path.name, segment.path)])
        chain.verify(streams, proof.notes, self._key, self._origin, base=segment.begin)
        name = segment.path.name
        raise Tampered(f"{name} is not what was written", object=name, record=segment.first)

    def _starts_of(self, segment: Segment) -> array[int]:
        """Where each line of a segment begins."""
        with self._lock:
            if segment.first in self._starts:
                self._starts.move_to_end(segment.first)
                return self._starts[segment.first]
        starts = line_starts(segment.path.read_bytes())
        if len(starts) != segment.end.size - segment.first:
            raise Tampered(f"{segment.path.name} is not what was written", object=segment.path.name)
        with self._lock:
            self._starts[segment.first] = starts
            while len(self._starts) > INDEXED:
                self._starts.popitem(last=False)
        return starts


def was_archived(record: int) -> FailedPrecondition:
    """Why a record is not here any more."""
    return FailedPrecondition(
        f"audit record {record} was archived: ask for newer ones, or look where the archive is"
    )


def line_starts(data: bytes) -> array[int]:
    """Where each line begins."""
    starts = array("Q")
    position = 0
    while position < len(data):
        starts.append(position)
        position = data.find(b"\n", position) + 1 or len(data)
    return starts


def write(path: Path, data: bytes) -> None:
    """Write a file whole and durably. Raises OSError, also when the disk is full."""
    try:
        write_durably(path, data)
    except Exhausted as error:
        raise error.__cause__ or error from None


def _delete(path: Path) -> None:
    """A segment, then its proof: a proof without its segment is one that was archived."""
    path.unlink(missing_ok=True)
    path.with_suffix(PROOF_SUFFIX).unlink(missing_ok=True)
