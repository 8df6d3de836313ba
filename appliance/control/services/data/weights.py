"""Weights from outside, checked while they come in.

Rules kept here:
* the header of a file is checked as soon as it has come, the size when the file ends
  (`appliance.crypto.tensors` says what a header may be);
* every number is one: a single NaN makes every answer of a model nonsense.

Whether the tensors are those of the configuration is `appliance.core.model_config`'s to say.

The attack: a file that is no safetensors file or whose header lies.

Pure. Called by `services.data.model_intake` while files come in, and by
`services.data.model_facts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from appliance.core.errors import InvalidInput
from appliance.core.names import shown
from appliance.crypto import tensors as layouts
from appliance.crypto.tensors import LENGTH_SIZE, TensorEntry, TensorLayout


@dataclass(frozen=True)
class Tensor:
    """What counts of a tensor here."""

    dtype: str
    shape: tuple[int, ...]


def by_name(entries: Iterable[TensorEntry]) -> dict[str, Tensor]:
    """The tensors of a file by name."""
    return {entry.name: Tensor(entry.dtype, entry.shape) for entry in entries}


class HeaderCheck:
    """Checks one safetensors file while its bytes pass by.

    Args:
        file: its name, for messages.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._start = bytearray()
        self._size = 0
        self._layout: TensorLayout | None = None
        self._numbers: NumberCheck | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, once the header has come."""
        return by_name(self._layout.entries) if self._layout else {}

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises InvalidInput as soon as something is seen to be wrong."""
        self._size += len(data)
        if self._numbers is not None:
            self._numbers.feed(data)
            return
        self._start += data
        if len(self._start) < LENGTH_SIZE:
            return
        end = LENGTH_SIZE + layouts.header_length(self._file, bytes(self._start[:LENGTH_SIZE]))
        if len(self._start) >= end:
            header = bytes(self._start[LENGTH_SIZE:end])
            self._layout = layouts.parse_header(self._file, header)
            self._numbers = NumberCheck(self._file, self._layout.entries)
            self._numbers.feed(bytes(self._start[end:]))
            self._start.clear()

    def finish(self) -> None:
        """The file has ended. Raises InvalidInput unless its size is what the header says."""
        layouts.check_size(self._file, self._layout, self._size)


class NumberCheck:
    """Looks at the numbers of a file's tensors while they pass by.

    Args:
        file: its name, for messages.
        entries: its tensors, in the order of their bytes.
    """

    def __init__(self, file: str, entries: Iterable[TensorEntry]) -> None:
        self._file = file
        self._entries = iter([entry for entry in entries if entry.begin < entry.end])
        self._entry: TensorEntry | None = next(self._entries, None)
        self._left = self._entry.end - self._entry.begin if self._entry else 0
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes behind the header. Raises InvalidInput for a number that is none."""
        view = memoryview(data)
        while self._entry is not None and view:
            piece, view = view[: self._left], view[self._left :]
            self._left -= len(piece)
            self._look(self._entry, bytes(piece))
            if not self._left:
                self._entry = next(self._entries, None)
                self._left = self._entry.end - self._entry.begin if self._entry else 0

    def _look(self, entry: TensorEntry, piece: bytes) -> None:
        # A number may come in two pieces; a tensor ends with a whole one.
        piece = self._rest + piece
        whole = len(piece) - len(piece) % layouts.SIZES[entry.dtype]
        self._rest = piece[whole:]
        for start in range(0, whole, _BLOCK):
            if not all_finite(entry.dtype, piece[start : min(start + _BLOCK, whole)]):
                why = f"has a number in {shown(entry.name)} that is none (NaN or infinite)"
                raise InvalidInput(
                    f"{self._file} {why}: the model is broken; take another copy of it.",
                    fields={self._file: why},
                )


# Of each type, the bits that are all ones in what is no finite number (IEEE 754, and the OCP's
# 8-bit formats), and the lowest of them.
_EXPONENTS: Mapping[str, tuple[int, int]] = {
    "F64": (0x7FF << 52, 1 << 52),
    "F32": (0xFF << 23, 1 << 23),
    "BF16": (0xFF << 7, 1 << 7),
    "F16": (0x1F << 10, 1 << 10),
    "F8_E5M2": (0x1F << 2, 1 << 2),
    "F8_E4M3": (0x7F, 1),
}
_BLOCK = 1 << 16


def all_finite(dtype: str, data: bytes) -> bool:
    """Whether numbers are no NaN and not infinite; little-endian, at most 64 KiB of them.

    All at once, as one long integer: where all of the bits are ones, adding the lowest of them
    carries into the sign.
    """
    if dtype not in _EXPONENTS:
        return True
    exponents, lowest, signs = _lanes(dtype)
    numbers = int.from_bytes(data, "little") & exponents
    return not (numbers + lowest) & signs


@cache
def _lanes(dtype: str) -> tuple[int, int, int]:
    """Exponent bits, the lowest of them, and the sign, repeated over a block."""
    size = layouts.SIZES[dtype]
    exponent, lowest = _EXPONENTS[dtype]

    def repeated(value: int) -> int:
        return int.from_bytes(value.to_bytes(size, "little") * (_BLOCK // size), "little")

    return repeated(exponent), repeated(lowest), repeated(1 << (8 * size - 1))
