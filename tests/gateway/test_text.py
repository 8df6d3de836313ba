"""Tokens to text over every seam: characters of several tokens, stop texts, and the end."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from appliance.gateway.text import Decoding, Detokenizer, StopFinder, context_of
from tests.fakes.worker import STORY, STORY_IDS, tokenizer

MADE = Decoding(tokenizer())


def metaspace() -> Tokenizer:
    """A tokenizer that writes a space as part of the word behind it, as Llama 2's does."""
    words = ["<unk>", "▁Das", "▁Haus", "▁steht", "<0xC3>", "<0xA9>"]
    made = Tokenizer(
        models.BPE(
            vocab={word: number for number, word in enumerate(words)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return made


def said(pieces: list[list[int]], stops: list[str], prompt: list[int] | None = None) -> str:
    text = Detokenizer(MADE, prompt or [], stops)
    shown = ""
    for piece in pieces:
        shown += text.add(piece)
        if text.stopped:
            return shown
    return shown + text.flush()


def test_characters_are_shown_whole() -> None:
    text = Detokenizer(MADE, [], [])
    pieces = [text.add([token]) for token in STORY_IDS]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) == STORY


@pytest.mark.parametrize("seam", range(len(STORY_IDS)))
def test_a_seam_anywhere_is_not_seen(seam: int) -> None:
    assert said([STORY_IDS[:seam], STORY_IDS[seam:]], []) == STORY


@pytest.mark.parametrize("stop", ["日本語", "🤗", "naïve", "s", "Es", "Antworten. "])
def test_a_stop_text_is_found_over_every_seam(stop: str) -> None:
    wanted = STORY[: STORY.find(stop)]
    for seam in range(len(STORY_IDS)):
        assert said([STORY_IDS[:seam], STORY_IDS[seam:]], [stop]) == wanted


def test_an_answer_that_ends_inside_a_character_shows_that() -> None:
    ids = tokenizer().encode("a🤗").ids[:-1]
    assert said([ids], []) == "a\ufffd"


@pytest.mark.attack
@pytest.mark.parametrize("make", [tokenizer, metaspace])
def test_ids_that_nobody_has_take_no_memory(make: Callable[[], Tokenizer]) -> None:
    made = make()
    decoding = Decoding(made)
    text = Detokenizer(decoding, [], [])
    assert text.add(range(1_000_000, 1_050_000)) + text.flush() == ""
    kept = (decoding._tokens, decoding._bytes, decoding._alone)
    assert max(map(len, kept)) <= made.get_vocab_size()


def test_special_tokens_are_not_text() -> None:
    assert said([[256, *STORY_IDS, 257]], []) == STORY


def test_the_prompt_tells_how_the_answer_begins() -> None:
    made = Decoding(metaspace())
    assert Detokenizer(made, [1, 2], []).add([3]) == " steht"
    assert Detokenizer(made, [], []).add([1, 2]) == "Das Haus"


def test_a_prompt_that_ends_in_half_a_character_is_no_context() -> None:
    half = tokenizer().encode("日本").ids[-2:]
    assert said([STORY_IDS], [], half) == STORY


def test_the_last_word_of_a_prompt_is_the_context_whatever_stands_behind_it() -> None:
    made = Decoding(metaspace())
    assert context_of(made, [1, 2, 4, 5]) == [2]
    assert context_of(made, [4, 5]) == []


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 4), min_size=30, max_size=30),
)
def test_pieces_make_no_difference(text: str, stops: list[str], lengths: list[int]) -> None:
    finder, shown, at = StopFinder(stops), "", 0
    stopped = False
    for length in lengths:
        piece, at = text[at : at + length], at + length
        more, stopped = finder.add(piece)
        shown += more
        if stopped:
            break
    if not stopped:
        shown += finder.flush()
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    # Of two stop texts, the one that can be told first may end it: no later than its last letter.
    if not found:
        assert shown == text
    else:
        assert stopped
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)


def test_what_cannot_become_a_stop_text_is_not_held_back() -> None:
    for text, stop in product(["abx", "xa"], ["abc"]):
        shown, stopped = StopFinder([stop]).add(text)
        assert not stopped
        assert shown == ("abx" if text == "abx" else "x")
