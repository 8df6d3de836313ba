"""Read sealed files, from anywhere in them.

The attack: somebody can read and write the storage. They copy, edit, cut, extend, swap, join or
roll back files. The format is described in `appliance.crypto.sealed_place`. Rules kept here:
* the *reader* says which place it expects. The header of the file is compared with it, never
  believed or parsed;
* opening proves key and place before a segment is read, and proves the last segment, hence the
  size, before any read;
* no byte of a segment that fails its check reaches the caller: the target holds zeros instead;
* `expect_tag` pins one writing of a file: an older authentic one is `Stale`.

Called by `appliance.crypto.artifacts`, and by whoever is given a reader of one of its files.
"""

from __future__ import annotations

import hmac
import io
from typing import TYPE_CHECKING, BinaryIO

from appliance.core.errors import InvalidInput, Stale, Tampered
from appliance.crypto.floe import HEADER_SIZE, OVERHEAD, FloeStream, Geometry
from appliance.crypto.sealed_place import MAGIC, SealedPlace

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PEEK_SIZE = 8192


class SealedReader(io.RawIOBase):
    """Reads a sealed file from anywhere in it; memory: two segments; for one thread at a time.

    Reading whole segments decrypts straight into the caller's buffer. For many small reads wrap it
    in `io.BufferedReader`; iterating over lines is quick as it is.

    Args:
        raw: a readable, seekable binary file that holds the sealed file and nothing else.
        key: 32 bytes.
        place: where the caller believes the file to be.
        expect_tag: the `tag` of the writing that is expected; None when any authentic one will do.
        closes_raw: close `raw` together with the reader.

    Raises:
        Tampered: it is not an intact sealed file of this place and key; names project, object and
            file.
        Stale: it is intact, but not the writing that `expect_tag` names.
    """

    def __init__(
        self,
        raw: BinaryIO,
        key: bytes,
        place: SealedPlace,
        *,
        expect_tag: str | None = None,
        closes_raw: bool = False,
    ) -> None:
        super().__init__()
        self.place = place
        self._raw = raw
        self._closes_raw = closes_raw
        self._offset = 0
        end = raw.seek(0, io.SEEK_END)
        raw.seek(0)
        self._stream = self._open_header(key)
        self._check_tag(expect_tag)
        self._body = len(place.prefix()) + HEADER_SIZE
        self._step = self._stream.parameters.plain_segment
        try:
            self._geometry = Geometry(self._stream.parameters.segment_size, end - self._body)
        except Tampered as error:
            raise place.tampered(error) from error
        largest = self._geometry.span(0)[1]
        self._sealed = memoryview(bytearray(largest))
        self._plain = memoryview(bytearray(largest - OVERHEAD))
        self._cached = -1
        # The last segment proves that nothing was cut off, so `size` can be trusted from here on.
        self._load(self._geometry.count - 1)

    @property
    def size(self) -> int:
        """Bytes of plaintext, authenticated."""
        return self._geometry.plain_size

    @property
    def tag(self) -> str:
        """Names this writing of the file (hex of the FLOE header tag)."""
        return self._stream.tag.hex()

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """Position in the plaintext, in bytes."""
        return self._offset

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to a position in the plaintext; it may lie behind the end."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self.size}.get(whence)
        if start is None or start + offset < 0:
            raise InvalidInput(f"Cannot seek to {offset} from {whence} in the {self.place}.")
        self._offset = start + offset
        return self._offset

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill the buffer, as far as there is data; returns the number of bytes, 0 at the end."""
        if self.closed:
            raise ValueError("read from a closed file")
        view = memoryview(buffer)
        view = view.cast("B") if view.nbytes else memoryview(bytearray())
        view = view[: max(0, self.size - self._offset)]
        size = len(view)
        while view:
            index, skip = divmod(self._offset, self._step)
            length = self._geometry.span(index)[1] - OVERHEAD
            if skip == 0 and len(view) >= length and index != self._cached:
                taken = length
                self._decrypt(index, view[:taken])
            else:
                self._load(index)
                taken = min(length - skip, len(view))
                view[:taken] = self._plain[skip : skip + taken]
            self._offset += taken
            view = view[taken:]
        return size

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes; everything that is left when `size` is negative or None."""
        left = max(0, self.size - self._offset)
        wanted = bytearray(left if size is None or size < 0 else min(size, left))
        self.readinto(wanted)
        return bytes(wanted)

    def readall(self) -> bytes:
        """Everything that is left."""
        return self.read(-1)

    def peek(self, _size: int = 0, /) -> bytes:
        """Some bytes at the position without moving; the interpreter's `readline` uses it."""
        offset = self._offset
        data = self.read(min(PEEK_SIZE, self._step - offset % self._step))
        self._offset = offset
        return data

    def close(self) -> None:
        """Forget the plaintext that is held; a second call does nothing."""
        if not self.closed and self._closes_raw:
            self._raw.close()
        self._cached = -1
        self._plain = memoryview(b"")
        super().close()

    def _open_header(self, key: bytes) -> FloeStream:
        prefix = self.place.prefix()
        found = self._take(len(prefix))
        if found[: len(MAGIC)] != MAGIC:
            raise self.place.tampered("it is not a sealed file")
        if found != prefix:
            raise self.place.tampered("it was sealed for another place, or its header was changed")
        try:
            return FloeStream.open(key, self.place.aad(), self._take(HEADER_SIZE))
        except Tampered as error:
            raise self.place.tampered(error) from error

    def _check_tag(self, expected: str | None) -> None:
        if expected is None or hmac.compare_digest(expected, self.tag):
            return
        raise Stale(
            f"The {self.place} is intact but is not the version on record: the storage was"
            " rolled back or files were mixed. Restore the recorded version from a backup.",
            project=self.place.project,
            object=self.place.object,
            file=self.place.file,
        )

    def _load(self, index: int) -> None:
        """Have segment `index` decrypted in the private buffer."""
        if index == self._cached:
            return
        self._cached = -1
        self._decrypt(index, self._plain[: self._geometry.span(index)[1] - OVERHEAD])
        self._cached = index

    def _decrypt(self, index: int, out: memoryview) -> None:
        offset, length = self._geometry.span(index)
        segment = self._sealed[:length]
        self._raw.seek(self._body + offset)
        if self._fill(segment) != length:
            raise self.place.tampered("it was cut short while it was read")
        try:
            self._stream.open_into(index, segment, out, last=index == self._geometry.count - 1)
        except Tampered as error:
            raise self.place.tampered(error) from error

    def _take(self, size: int) -> bytes:
        data = bytearray(size)
        return bytes(data[: self._fill(memoryview(data))])

    def _fill(self, target: memoryview) -> int:
        filled = 0
        while filled < len(target):
            count = self._raw.readinto(target[filled:])  # type: ignore[attr-defined]  # every binary file has it; typing.BinaryIO forgot
            if not count:
                break
            filled += count
        return filled
