"""How an upload is cut into parts, and whether the files of a model may come in at all. Pure.

Parts are numbered from 0 on. A part of a dataset holds whole documents, as many as its sender
likes. A model says first which files it brings; each is cut into parts of the same size, the last
one is what is left, and an empty file has one empty part. So it is known of every number which
bytes of which file it has, and how many parts there are.

Rule kept here: what is refused by its name or by its size is refused before a byte of it is sent,
all of it at once.

Called by `services.data.uploads`, `upload_parts` and `upload_tasks`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from appliance.control.services.data.model_intake import MAX_FILES
from appliance.core import model_files
from appliance.core.errors import InvalidInput
from appliance.core.model_files import is_weights
from appliance.core.numbers import written

PART_BYTES = 8 << 20
"""Of a dataset at most, of a model exactly."""
MAX_PARTS = 100_000
"""Of one upload: 781 GiB."""
PART_DOCUMENTS = 20_000

File = tuple[str, int]


@dataclass(frozen=True)
class ModelPiece:
    """What a part of a model has: which file, how many bytes, and whether that is all of it."""

    file: str
    size: int
    whole: bool


@dataclass(frozen=True)
class UploadLayout:
    """The parts of a model.

    Args:
        files: names and bytes, in the order of their parts.
    """

    files: Sequence[File]

    @cached_property
    def ends(self) -> list[int]:
        """After which part each file ends."""
        return list(accumulate(max(1, -(-size // PART_BYTES)) for _, size in self.files))

    @property
    def parts(self) -> int:
        """How many there are."""
        return self.ends[-1]

    def piece(self, number: int) -> ModelPiece:
        """What a part has; `number` is one of them."""
        place = bisect_right(self.ends, number)
        file, size = self.files[place]
        first = self.ends[place - 1] if place else 0
        start = (number - first) * PART_BYTES
        return ModelPiece(file, min(PART_BYTES, size - start), size <= PART_BYTES)

    def numbers(self, place: int) -> Iterator[int]:
        """The parts of one file, by its place."""
        yield from range(self.ends[place - 1] if place else 0, self.ends[place])


def kept_files(files: Sequence[File]) -> list[File]:
    """The files of a model that are taken, without what is read past.

    Raises InvalidInput that names everything that is wrong with names and sizes.
    """
    if len(files) > MAX_FILES:
        raise InvalidInput(f"a model has at most {written(MAX_FILES)} files")
    judged = model_files.sort_files(file for file, _ in files)
    problems, names = judged.problems, set(judged.kept)
    kept: dict[str, int] = {}
    for file, size in files:
        if file not in names:
            continue
        if file in kept:
            problems[file] = "comes twice; name it once"
        elif size < 0 or (not is_weights(file) and size > model_files.largest(file)):
            largest = written(model_files.largest(file))
            problems[file] = f"has {written(size)} bytes; 0 to {largest} are taken"
        else:
            kept[file] = size
    model_files.raise_any(problems)
    if UploadLayout(list(kept.items())).parts > MAX_PARTS:
        raise InvalidInput(
            f"the files have more than {written(MAX_PARTS)} parts of {written(PART_BYTES)} bytes, "
            "more than a model may have here"
        )
    return list(kept.items())
