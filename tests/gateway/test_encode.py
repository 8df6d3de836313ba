"""Token ids of pieces are those of the whole; what is too long is refused early."""

from __future__ import annotations

import functools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from appliance.core.errors import ContextExceeded, InvalidInput
from appliance.gateway import vocabulary
from appliance.gateway.encode import Encoder
from tests.fakes.tokenizers import CONTROLS, KINDS, TEXTS, gpt2, llama2

MOST = 1 << 20
WORDS = (
    *(" ", "  ", "\n", " \n", "\t", "\r\n", "\u00a0", "'", "'s", "don't", "12345", "x1", "_a"),
    *(
        "the",
        " the",
        "and",
        "The",
        "naïve",
        "é",
        "e\u0301",
        "日本",
        "한국",
        "\u1112\u1161",
        "हिन्दी",
    ),
    *("!", "...", "</p>", "<b>", "a" * 30, "\u0301", "ﬁ", "🤗", "👩‍👩‍👧", "▁", "▁the", "\ufffd"),
)
SOME = st.lists(st.sampled_from(WORDS), max_size=120).map("".join) | st.text(max_size=200)


def encoder(made: Tokenizer, piece: int = 20) -> Encoder:
    return Encoder(vocabulary.read(made.to_str(), "", CONTROLS, []), piece=piece)


@functools.cache
def encoder_of(kind: str) -> Encoder:
    return encoder(KINDS[kind]())


@pytest.mark.parametrize("kind", KINDS)
@given(SOME)
def test_tokens_of_pieces_are_those_of_the_whole(kind: str, text: str) -> None:
    # What spells a control token is text here and the token there.
    assume(not any(control in text for control in CONTROLS))
    for special in (True, False):
        whole = KINDS[kind]().encode(text, add_special_tokens=special).ids
        assert encoder_of(kind).encode(text, MOST, special=special) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_text_is_cut_into_many_pieces(kind: str) -> None:
    text = "".join(TEXTS) * 8
    found = encoder_of(kind)
    pieces = [piece for piece, _ in found._pieces(text)]
    assert "".join(pieces) == text
    assert len(pieces) > 10
    assert found.encode(text, MOST, special=True) == KINDS[kind]().encode(text).ids


def test_a_text_that_can_be_cut_nowhere_is_one_piece() -> None:
    text = "a" * 500
    assert [piece for piece, _ in encoder_of("gpt2")._pieces(text)] == [text]


@pytest.mark.attack
@pytest.mark.parametrize("kind", ["gpt2", "llama3", "llama2", "gemma", "metaspace"])
def test_more_bytes_than_a_context_can_hold_are_refused_untokenized(kind: str) -> None:
    found = encoder_of(kind)
    longest = found._longest
    assert longest is not None
    found = encoder(KINDS[kind]())
    found.tokenizer = None  # type: ignore[assignment]  # it is not asked
    with pytest.raises(ContextExceeded, match="send a shorter one"):
        found.encode("x" * (100 * longest + 1), 100, special=False)


@pytest.mark.parametrize("kind", KINDS)
@given(SOME)
def test_no_text_that_fits_is_refused_by_its_bytes(kind: str, text: str) -> None:
    tokens = len(KINDS[kind]().encode(text, add_special_tokens=False).ids)
    ids = encoder_of(kind).encode(text, tokens + 1, special=False)
    assert len(ids) == tokens


@pytest.mark.attack
def test_tokenizing_stops_at_the_piece_that_is_too_much() -> None:
    class Counting:
        pieces = 0

        def __init__(self, inner: Tokenizer) -> None:
            self._inner = inner

        def encode_batch_fast(self, texts: list[str], **how: bool) -> object:
            Counting.pieces += 1
            return self._inner.encode_batch_fast(texts, **how)

    found = encoder(gpt2(), 64)
    found.tokenizer = found._rest = Counting(found.tokenizer)  # type: ignore[assignment]
    with pytest.raises(ContextExceeded, match="more than"):
        found.encode(" and so on" * 10_000, 20_000, special=False)
    whole = Counting.pieces
    Counting.pieces = 0
    with pytest.raises(ContextExceeded, match="more than"):
        found.encode(" and so on" * 10_000, 6000, special=False)
    assert Counting.pieces < whole / 2


def test_the_numbers_are_told() -> None:
    with pytest.raises(ContextExceeded, match=r"has 11 tokens.*may have 11"):
        encoder(llama2()).encode("zzzzzzzzzz", 11, special=False)


@pytest.mark.attack
def test_what_is_no_unicode_is_refused() -> None:
    with pytest.raises(InvalidInput, match="not valid Unicode"):
        encoder_of("gpt2").encode("\ud800", MOST, special=False)
