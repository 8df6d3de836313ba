"""The documents of the input datasets: read in order as often as needed, or one by its number.

Nothing is unpacked: parts are read through sealed readers, and memory holds where each document is,
not what it says.
"""

from __future__ import annotations

import io
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from appliance.core.errors import InvalidInput
from appliance.crypto.artifacts import ArtifactReader

_BUFFER = 1 << 20


@dataclass(frozen=True)
class Document:
    """One text. `number` counts from zero over all inputs; `id` is unique within its dataset."""

    number: int
    id: str
    text: str


class Corpus:
    """Documents of several text versions, one after another.

    Args:
        datasets: opened text versions, with files `part-*.jsonl`.
    """

    def __init__(self, datasets: Sequence[ArtifactReader]) -> None:
        parts = [
            io.BufferedReader(dataset.open(file), _BUFFER)
            for dataset in datasets
            for file in sorted(dataset.files())
            if file.startswith("part-")
        ]
        if not parts:
            raise InvalidInput(
                "The datasets hold no text: prepare reads uploaded text, not prepared tokens."
            )
        self._parts = parts
        # Part, offset and length of each document, known once all have been read.
        self._part, self._offset, self._length = array("I"), array("Q"), array("Q")

    def __iter__(self) -> Iterator[Document]:
        """Every document, in order."""
        number = 0
        for index, part in enumerate(self._parts):
            part.seek(0)
            offset = 0
            for line in part:
                if number == len(self._part):
                    self._part.append(index)
                    self._offset.append(offset)
                    self._length.append(len(line))
                yield _parse(number, line)
                offset += len(line)
                number += 1

    def __getitem__(self, number: int) -> Document:
        """One document that was read before; costs one seek."""
        part = self._parts[self._part[number]]
        here = part.tell()
        part.seek(self._offset[number])
        line = part.read(self._length[number])
        part.seek(here)
        return _parse(number, line)


def _parse(number: int, line: bytes) -> Document:
    entry = json.loads(line)
    return Document(number, str(entry["id"]), str(entry["text"]))
