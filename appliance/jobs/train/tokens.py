"""The training data: a stream of tokens over sealed shards, cut into windows, in a seeded order.

A window is `sequence_length` tokens and the one that follows; the model sees all but the last and
learns to predict the next at each place. Windows do not overlap; documents follow one another,
separated by the end-of-text token. Every pass over the data has an order of its own.

Rules kept here:
* the batch of a step is a pure function of seed and step, so that a resumed run, and a run on
  another number of ranks, sees the same sequences;
* shards are read where they are, through sealed readers: nothing is unpacked to disk, and memory
  does not grow with the data.

Called by `appliance.jobs.train.job` and `loop`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from appliance.core.errors import InvalidInput
from appliance.crypto.artifacts import ArtifactReader
from appliance.crypto.sealed_reader import SealedReader

INDEX = "index.json"
TYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
OPEN_SHARDS = 8


@dataclass(frozen=True)
class Shard:
    """One file of token ids."""

    file: str
    tokens: int


@dataclass(frozen=True)
class TokenIndex:
    """What `index.json` of a prepared dataset says about its training split."""

    dtype: np.dtype[Any]
    vocabulary_size: int
    end_of_text: int
    shards: tuple[Shard, ...]

    @classmethod
    def read(cls, dataset: ArtifactReader) -> TokenIndex:
        """Read and check the index.

        Raises:
            InvalidInput: the dataset holds no tokens.
        """
        if INDEX not in dataset.files():
            raise InvalidInput(
                "The dataset holds text, not tokens. Run a prepare job on it and train on the"
                " dataset version that the job makes."
            )
        index = dataset.read_json(INDEX)
        if index.get("format") != "tokens" or index.get("dtype") not in TYPES:
            raise InvalidInput(
                f"{INDEX} of the dataset has a format this version cannot read. Prepare it again."
            )
        shards = tuple(
            Shard(str(shard["file"]), int(shard["tokens"]))
            for shard in index["shards"]
            if shard["split"] == "train"
        )
        dtype = TYPES[index["dtype"]]
        for shard in shards:
            if dataset.entry(shard.file).plain_size != shard.tokens * dtype.itemsize:
                raise InvalidInput(
                    f"The shard {shard.file} is not as long as {INDEX} says. Prepare it again."
                )
        return cls(dtype, int(index["vocabulary_size"]), int(index["end_of_text"]), shards)

    @property
    def tokens(self) -> int:
        """Tokens of the training split."""
        return sum(shard.tokens for shard in self.shards)


class TokenStream:
    """Reads any span of the token stream; a context manager that closes the shards it opened."""

    def __init__(self, dataset: ArtifactReader, index: TokenIndex) -> None:
        self.index = index
        self._dataset = dataset
        self._ends = list(accumulate(shard.tokens for shard in index.shards))
        self._open: OrderedDict[str, SealedReader] = OrderedDict()

    def __enter__(self) -> Self:
        """The stream itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close every shard."""
        with ExitStack() as stack:
            for reader in self._open.values():
                stack.callback(reader.close)
        self._open.clear()

    def read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Tokens `start` to `start + count` of the stream.

        Raises:
            InvalidInput: a token lies outside the vocabulary.
        """
        parts = []
        shard = bisect_right(self._ends, start)
        while count > 0:
            first = self._ends[shard] - self.index.shards[shard].tokens
            taken = min(count, self._ends[shard] - start)
            parts.append(self._read_shard(self.index.shards[shard], start - first, taken))
            start, count, shard = start + taken, count - taken, shard + 1
        tokens: npt.NDArray[np.int64] = np.concatenate(parts).astype(np.int64)
        if tokens.size and tokens.max() >= self.index.vocabulary_size:
            raise InvalidInput(
                f"The dataset holds the token {tokens.max()}, but its vocabulary has"
                f" {self.index.vocabulary_size} entries. Prepare it again."
            )
        return tokens

    def _read_shard(self, shard: Shard, start: int, count: int) -> npt.NDArray[Any]:
        tokens = np.empty(count, self.index.dtype)
        reader = self._reader(shard.file)
        reader.seek(start * tokens.itemsize)
        reader.readinto(tokens.data.cast("B"))
        return tokens

    def _reader(self, file: str) -> SealedReader:
        if file not in self._open:
            if len(self._open) >= OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
            self._open[file] = self._dataset.open(file)
        self._open.move_to_end(file)
        return self._open[file]


class Batches:
    """The batch of every step.

    Args:
        stream: the tokens.
        sequence_length: tokens per sequence.
        batch_size: sequences per step over all data ranks.
        seed: of the order.

    Raises:
        InvalidInput: the data holds no whole sequence.
    """

    def __init__(
        self, stream: TokenStream, sequence_length: int, batch_size: int, seed: int
    ) -> None:
        self._stream = stream
        self._length = sequence_length
        self._batch_size = batch_size
        self._seed = seed
        self.windows = max(0, stream.index.tokens - 1) // sequence_length
        if self.windows == 0:
            raise InvalidInput(
                f"The dataset has {stream.index.tokens} training tokens, fewer than one sequence of"
                f" {sequence_length} and its next token. Add data or shorten sequence_length."
            )
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def rows(self, step: int, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Some sequences of a step's batch.

        Args:
            step: counted from 0.
            first: first row of the batch.
            count: how many rows.

        Returns:
            Inputs and targets, each int64 of shape (count, sequence_length).
        """
        windows = [
            self._stream.read(self._window(step, row) * self._length, self._length + 1)
            for row in range(first, first + count)
        ]
        tokens = torch.from_numpy(np.stack(windows))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def _window(self, step: int, row: int) -> int:
        turn, place = divmod(step * self._batch_size + row, self.windows)
        if self._order[0] != turn:
            # A batch may reach into the next pass; then both orders are made again, which is rare.
            generator = np.random.Generator(np.random.Philox([self._seed % 2**64, turn]))
            self._order = (turn, generator.permutation(self.windows))
        return int(self._order[1][place])
