"""Archiving: closed segments that somebody else holds are deleted here, and a signed note says so.

Rules kept here:
* a segment is deleted here only for a caller who names the root over all records up to its end, as
  whoever has read them computes it: a guard against mistakes, not a proof that they are kept;
* the newest closed segment stays, for the record after it names its last one;
* the file `archived` is signed and durable before anything is deleted;
* what is deleted from an archive is stated by a note of its own (`pruned`), so that what is left of
  the archive is still proved, and nobody else can make it look pruned.

The attack: records deleted, and called archived or pruned. Called by the audit service.
"""

from __future__ import annotations

from appliance.control.audit.closed import Closed, Segment, was_archived
from appliance.core.errors import FailedPrecondition, InvalidInput, Tampered, Unavailable
from appliance.crypto.proofs import ARCHIVED, PRUNED, SegmentProof
from appliance.crypto.signing import SigningKey, equal


class Archive:
    """Signs what leaves one log.

    Args:
        closed: the closed segments of the log.
        key: signs.
        origin: name of the log in its checkpoints.
    """

    def __init__(self, closed: Closed, key: SigningKey, origin: str) -> None:
        self._closed, self._key, self._origin = closed, key, origin

    def proof_of(self, segment: Segment) -> bytes:
        """The proof of a segment, checked.

        Raises Tampered, and FailedPrecondition when it was archived.
        """
        try:
            proof = segment.proof()
        except Tampered:
            if segment in self._closed.segments:
                raise
            raise was_archived(segment.first) from None
        proof.check(self._key.verify_key, self._origin)
        return proof.dumps()

    def archive(self, size: int, root: bytes) -> int:
        """Delete the segments up to a size that somebody holds elsewhere; the first record left.

        Args:
            size: of the log at the end of a closed segment.
            root: of the tree of the first `size` records.

        Raises:
            FailedPrecondition: no closed segment but the newest ends there.
            InvalidInput: the root is another one.
        """
        try:
            self._closed.archive(size, lambda segment: self._statement_of(segment, root))
        except OSError as error:
            raise Unavailable(
                f"the disk of the control plane failed ({error.strerror}): repeat it; what is "
                "deleted by then is archived"
            ) from error
        return self._closed.first

    def prune(self, proof: bytes) -> SegmentProof:
        """The signed statement that what was archived up to the end of a segment is deleted.

        Args:
            proof: of that segment, as the archive holds it.

        Raises:
            InvalidInput: it is not a proof of this log.
            FailedPrecondition: its records are still here.
        """
        try:
            found = SegmentProof.loads(proof, "proof")
            found.check(self._key.verify_key, self._origin)
        except Tampered as error:
            wrong = "is not a proof of this log: give the file of an archived segment"
            raise InvalidInput(f"proof {wrong}", fields={"proof": wrong}) from error
        if found.size > self._closed.first:
            raise FailedPrecondition(
                f"records before {self._closed.first} were archived, and these end at "
                f"{found.size}: archive them first"
            )
        return found.signed_as(PRUNED, self._key, self._origin)

    def _statement_of(self, segment: Segment, root: bytes) -> SegmentProof:
        """Of what this process knows, not of what lies in a file that somebody may have changed."""
        if not equal(segment.end.root(), root):
            wrong = "is not the root of these records: read and archive them again"
            raise InvalidInput(f"root {wrong}", fields={"root": wrong})
        known = SegmentProof.of(segment.first, segment.look.size, segment.end, ())
        return known.signed_as(ARCHIVED, self._key, self._origin)
