"""Write token ids into sealed shards of a fixed number of tokens, per split."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from appliance.crypto.artifacts import ArtifactWriter
from appliance.crypto.sealed_writer import SealedWriter


def dtype_for(vocabulary_size: int) -> np.dtype[Any]:
    """Little-endian unsigned integers that hold every id."""
    return np.dtype("<u2") if vocabulary_size <= 1 << 16 else np.dtype("<u4")


class ShardWriter:
    """Cuts the tokens of one split into files `SPLIT-00000.bin`, ...

    Args:
        output: the artifact that gets the files.
        split: `train` or `validation`.
        dtype: of the ids in the files.
        shard_tokens: ids per file; the last may have fewer.
    """

    def __init__(
        self, output: ArtifactWriter, split: str, dtype: np.dtype[Any], shard_tokens: int
    ) -> None:
        self.split = split
        self.tokens = 0
        self.shards: list[dict[str, str | int]] = []
        self._output = output
        self._dtype = dtype
        self._limit = shard_tokens
        self._file: SealedWriter | None = None
        self._left = 0

    def write(self, ids: list[int]) -> None:
        """Append ids; a document may go on in the next shard."""
        left: npt.NDArray[Any] = np.asarray(ids, dtype=self._dtype)
        while len(left):
            if self._file is None:
                self._begin()
            piece, left = left[: self._left], left[self._left :]
            self._add(piece)

    def close(self) -> None:
        """Finish the last shard."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the last shard, or give it up after an error."""
        if error is None:
            self.close()
        elif self._file is not None:
            self._file.abort()

    def _begin(self) -> None:
        file = f"{self.split}-{len(self.shards):05d}.bin"
        self._file = self._output.create(file)
        self._left = self._limit
        self.shards.append({"file": file, "tokens": 0, "split": self.split})

    def _add(self, piece: npt.NDArray[Any]) -> None:
        if self._file is None:
            return
        self._file.write(piece.tobytes())
        self._left -= len(piece)
        self.tokens += len(piece)
        self.shards[-1]["tokens"] = int(self.shards[-1]["tokens"]) + len(piece)
        if self._left == 0:
            self.close()
