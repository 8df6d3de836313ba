"""Which rows of a model's embedding are no token, so that the engine never answers with one.

Trainers pad an embedding to a multiple of a number that hardware likes, and tokenizers leave ids
out. Such a row has weights like any other and can be the likeliest; nobody could read the answer.

Called by `appliance.worker.main`; pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from appliance.core.errors import InvalidInput

Ranges = list[tuple[int, int]]
"""First id of each range, and the one behind its last."""


def missing(tokenizer: object, rows: int) -> Ranges:
    """Ids below `rows` that a tokenizer does not have.

    Args:
        tokenizer: value of the model's `tokenizer.json`.
        rows: of the embedding.

    Raises InvalidInput when it is no tokenizer, or has no id that the model has.
    """
    try:
        known = set(_ids(tokenizer))
    except (TypeError, KeyError, AttributeError) as error:
        raise InvalidInput(
            "the model's tokenizer.json is not one: import the model again"
        ) from error
    absent = [number for number in range(rows) if number not in known]
    if len(absent) == rows:
        raise InvalidInput(
            "the model's tokenizer.json has no token for its weights: import the model again"
        )
    groups = groupby(enumerate(absent), lambda pair: pair[1] - pair[0])
    found = [[number for _, number in group] for _, group in groups]
    return [(group[0], group[-1] + 1) for group in found]


def _ids(tokenizer: object) -> Iterator[int]:
    if not isinstance(tokenizer, dict):
        raise TypeError
    entries = tokenizer["model"]["vocab"]
    yield from entries.values() if isinstance(entries, dict) else range(len(entries))
    for token in tokenizer.get("added_tokens") or ():
        yield token["id"]
