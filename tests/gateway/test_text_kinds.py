"""Streamed text is decoded text, for tokenizers of every kind and whatever an engine answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from appliance.gateway.text import Decoding, Detokenizer
from tests.fakes.tokenizers import KINDS, llama2

PROMPT = "abc the"


def streamed(made: Tokenizer, prompt: list[int], answer: list[int], seams: list[int]) -> str:
    text = Detokenizer(Decoding(made), prompt, [])
    shown, at = "", 0
    for seam in [*sorted(seams), len(answer)]:
        shown += text.add(answer[at:seam])
        at = max(at, seam)
    return shown + text.flush()


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_streamed_text_is_decoded_text(kind: str, data: st.DataObject) -> None:
    made = KINDS[kind]()
    size = made.get_vocab_size()
    # Also ids that the tokenizer does not have: of a padded embedding.
    answer = data.draw(st.lists(st.integers(0, size + 63), max_size=40))
    seams = data.draw(st.lists(st.integers(0, len(answer)), max_size=4))
    assert streamed(made, [], answer, seams) == made.decode(answer)
    prompt = made.encode(PROMPT, add_special_tokens=False).ids
    whole = made.decode([*prompt, *answer])
    assert made.decode(prompt) + streamed(made, prompt, answer, seams) == whole


@given(st.lists(st.sampled_from([3 + byte for byte in range(256)]), max_size=60))
def test_bytes_that_are_no_character_are_shown_as_such(answer: list[int]) -> None:
    made = llama2()
    assert streamed(made, [], answer, list(range(len(answer)))) == made.decode(answer)


def test_a_character_spelled_in_bytes_is_shown_whole() -> None:
    made = llama2()
    answer = made.encode("the 日本 and", add_special_tokens=False).ids
    text = Detokenizer(Decoding(made), [], [])
    pieces = [text.add([token]) for token in answer]
    assert "".join(pieces) + text.flush() == "the 日本 and"
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.attack
@pytest.mark.parametrize("kind", KINDS)
def test_no_id_ends_an_answer(kind: str) -> None:
    text = Detokenizer(Decoding(KINDS[kind]()), [], [])
    text.add([0, (1 << 31) - 1, 100_000, (1 << 32) - 1])
    assert text.flush() is not None
