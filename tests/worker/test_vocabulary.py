"""Rows of an embedding that no token stands for."""

from __future__ import annotations

import pytest

from appliance.core.errors import InvalidInput
from appliance.worker.vocabulary import missing


def tokenizer(*ids: int, added: tuple[int, ...] = ()) -> dict[str, object]:
    vocabulary = {f"t{number}": number for number in ids}
    more = [{"id": number, "content": f"a{number}"} for number in added]
    return {"model": {"vocab": vocabulary}, "added_tokens": more}


def test_padding_and_gaps_are_found() -> None:
    assert missing(tokenizer(*range(60)), 64) == [(60, 64)]
    assert missing(tokenizer(0, 1, 4, added=(6,)), 9) == [(2, 4), (5, 6), (7, 9)]


def test_a_whole_vocabulary_has_none() -> None:
    assert missing(tokenizer(*range(8)), 8) == []
    # More tokens than rows: the gateway refuses ids that the model does not have.
    assert missing(tokenizer(*range(9)), 8) == []
    assert missing({"model": {"vocab": [["a", 0.0], ["b", -1.0]]}}, 3) == [(2, 3)]


@pytest.mark.parametrize(
    "wrong", [None, [], {}, {"model": {}}, {"model": {"vocab": {}}}, tokenizer(70)]
)
def test_what_is_no_tokenizer_for_the_model_is_refused(wrong: object) -> None:
    with pytest.raises(InvalidInput, match="import the model again"):
        missing(wrong, 64)
