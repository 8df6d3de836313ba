"""Closed segments leave: somebody else holds them, and what is here says so, signed.

Rules kept here:
* a segment is deleted here only for a caller who names the root over all records up to its end,
  which nobody can who does not hold them; the newest closed segment stays, for the record after it
  names its last one;
* the file `archived` is signed and durable before anything is deleted;
* what is deleted from an archive is stated by a note of its own (`pruned`), so that what is left of
  the archive is still proved, and nobody else can make it look pruned.

The attack: records deleted, and called archived or pruned. Called by the audit service.
"""

from __future__ import annotations

from appliance.control.audit.closed import Closed, Segment
from appliance.core.errors import FailedPrecondition, InvalidInput, Tampered
from appliance.crypto.proofs import ARCHIVED, PRUNED, Proof
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

    def segments(self) -> list[Segment]:
        """The closed segments that are here, oldest first."""
        return list(self._closed.segments)

    def statement(self) -> bytes:
        """What says that the records before the first were archived; empty when none were."""
        return self._closed.archived()

    def archive(self, size: int, root: bytes) -> int:
        """Delete the segments up to a size that somebody holds elsewhere; the first record left.

        Args:
            size: of the log at the end of a closed segment.
            root: of the tree of the first `size` records.

        Raises:
            FailedPrecondition: no closed segment but the newest ends there.
            InvalidInput: the root is another one.
        """
        if size <= self._closed.first:
            return self._closed.first
        found = [segment for segment in self.segments()[:-1] if segment.end.size == size]
        if not found:
            raise FailedPrecondition(
                f"no closed segment before the newest ends at {size} records: list the segments, "
                "and archive up to the end of one of them"
            )
        if not equal(found[0].end.root(), root):
            wrong = "is not the root of these records: read and archive them again"
            raise InvalidInput(f"root {wrong}", fields={"root": wrong})
        self._closed.archive(found[0].proof().signed_as(ARCHIVED, self._key, self._origin))
        return self._closed.first

    def prune(self, proof: bytes) -> Proof:
        """The signed statement that what was archived up to the end of a segment is deleted.

        Args:
            proof: of that segment, as the archive holds it.

        Raises:
            InvalidInput: it is not a proof of this log.
            FailedPrecondition: its records are still here.
        """
        try:
            found = Proof.loads(proof, "proof")
            found.check(self._key.verify_key, self._origin)
        except Tampered as error:
            wrong = "is not a proof of this log: give the file of an archived segment"
            raise InvalidInput(f"proof {wrong}", fields={"proof": wrong}) from error
        if found.size > self._closed.first:
            raise FailedPrecondition(
                f"records up to {found.size} are not archived, those before {self._closed.first} "
                "are: archive them first"
            )
        return found.signed_as(PRUNED, self._key, self._origin)
