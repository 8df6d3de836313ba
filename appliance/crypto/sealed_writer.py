"""Write sealed files: what the appliance stores is encrypted while it is written.

The format is described in `appliance.crypto.sealed_place`. Rules kept here:
* a file whose writer did not close has no last segment and cannot be opened;
* a write that failed half way makes the file unusable: `close` raises.

Called by `appliance.crypto.artifacts`, and by whoever is given a writer of one of its files.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from appliance.core.errors import FailedPrecondition
from appliance.crypto.floe import OVERHEAD, SEGMENT_SIZE, FloeStream, Parameters
from appliance.crypto.sealed_place import SealedPlace

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class SealedSink(Protocol):
    """What a sealed file is written to: any writable binary file."""

    def write(self, data: memoryview, /) -> int:
        """Take some or all of the bytes; returns how many."""


class SealedWriter:
    """Encrypts a file while it is written; memory: two segments, whatever the size of the file.

    Leaving a `with` block closes it; leaving by an exception aborts it, and what was written can
    never be opened. The writer does not close `raw`.

    Args:
        raw: a writable binary file, at the position where the sealed file begins.
        key: 32 bytes.
        place: where the file belongs.
        segment_size: bytes of a sealed segment.

    After `close`: `plain_size` and `sealed_size` in bytes, and `tag`, which names this writing of
    the file (hex).
    """

    def __init__(
        self, raw: SealedSink, key: bytes, place: SealedPlace, *, segment_size: int = SEGMENT_SIZE
    ) -> None:
        self.place = place
        self.plain_size = 0
        self.sealed_size = 0
        self._raw = raw
        self._stream = FloeStream.create(key, place.aad(), Parameters(segment_size))
        self.tag = self._stream.tag.hex()
        self._step = self._stream.parameters.plain_segment
        self._held = bytearray()
        self._sealed = memoryview(bytearray())
        self._position = 0
        self._closed = False
        self._whole = True
        self._put(place.prefix() + self._stream.header)

    def write(self, data: ReadableBuffer) -> int:
        """Append bytes (any contiguous buffer); returns how many, which is always all of them."""
        if self._closed:
            raise FailedPrecondition(
                f"The {self.place} is closed; nothing more can be written to it."
            )
        view = memoryview(data)
        if view.nbytes == 0:
            return 0
        view = view.cast("B")
        size = len(view)
        # A full segment waits until more follows, because the last segment is marked as the last.
        while view:
            if len(self._held) == self._step:
                self._emit(self._held, last=False)
                self._held.clear()
            if not self._held and len(view) > self._step:
                piece, view = view[: self._step], view[self._step :]
                self._emit(piece, last=False)
            else:
                room = self._step - len(self._held)
                self._held += view[:room]
                view = view[room:]
        self.plain_size += size
        return size

    def close(self) -> None:
        """Write the last segment; without it the file cannot be opened. A second call does nothing.

        Raises:
            FailedPrecondition: an earlier write failed, so the file is not whole.
        """
        if self._closed:
            return
        self._closed = True
        if not self._whole:
            raise FailedPrecondition(f"The {self.place} was not written whole; write it again.")
        self._emit(self._held, last=True)
        self._held.clear()

    def abort(self) -> None:
        """Stop without a last segment. A second call, or one after `close`, does nothing."""
        self._closed = True
        self._held.clear()

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close, or abort when the block failed."""
        if kind is None:
            self.close()
        else:
            self.abort()

    def _emit(self, plain: bytearray | memoryview, *, last: bool) -> None:
        length = len(plain) + OVERHEAD
        if len(self._sealed) < length:
            self._sealed = memoryview(bytearray(length))
        out = self._sealed[:length]
        self._stream.seal_into(self._position, plain, out, last=last)
        self._position += 1
        self._put(out)

    def _put(self, data: bytes | memoryview) -> None:
        self._whole = False
        view = memoryview(data)
        while view:
            # An unbuffered file may take less than it is given.
            written = self._raw.write(view)
            self.sealed_size += written
            view = view[written:]
        self._whole = True
