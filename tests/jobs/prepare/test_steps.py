"""Each step of a prepare job against answers written by hand."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.jobs.prepare.duplicates import ExactDuplicates, NearDuplicates, jaccard, shingles
from appliance.jobs.prepare.normalize import normalize
from appliance.jobs.prepare.personal_data import is_card, is_iban, redact
from appliance.jobs.prepare.quality import fault

PROSE = (
    "The quick brown fox jumps over the lazy dog while the old clock on the wall strikes noon. "
    "A module is a file of Python code; importing it runs the code once and keeps the names. "
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("e\u0301", "\u00e9"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("a  \t\nb", "a\nb"),
        ("a\n\n\n\n\nb", "a\n\nb"),
        ("\ufeffa\u200bb\x00c\ufffd", "abc"),
        ("left\u202eright", "leftright"),
        ("x\u00b2 \ufb01", "x\u00b2 \ufb01"),
        (" \n\t ", ""),
    ],
)
def test_normalize(text: str, expected: str) -> None:
    assert normalize(text) == expected


@given(st.text(max_size=200))
def test_normalizing_twice_changes_nothing(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once


def test_exact_duplicates_ignore_case_and_spacing() -> None:
    seen = ExactDuplicates()
    found = [seen.is_repeated(t) for t in ("One  two\nthree", "one two three", "one two four")]
    assert found == [False, True, False]


def test_jaccard_of_shingles() -> None:
    one, other = shingles("a b c d e f"), shingles("a b c d e g")
    assert one == {"a b c d e", "b c d e f"}
    assert jaccard(one, other) == pytest.approx(1 / 3)
    assert jaccard(shingles("a b"), shingles("A  B")) == 1.0


def test_near_duplicates_drop_only_what_truly_reaches_the_threshold() -> None:
    words = [f"word{i}" for i in range(200)]
    near, far = list(words), list(words)
    near[100] = "changed"  # 5 of 196 shingles differ: similarity 191 / 201
    for place in range(0, 200, 10):
        far[place] = f"other{place}"  # 20 changes: similarity about a third
    texts = [" ".join(words), " ".join(near), " ".join(far)]
    similar = NearDuplicates(0.8, texts.__getitem__)
    assert [similar.original_of(i, text) for i, text in enumerate(texts)] == [None, 0, None]


def test_planted_near_duplicates_are_found() -> None:
    base = [[f"w{i}x{j}" for j in range(120)] for i in range(50)]
    copies = [[*words[:60], "edited", *words[61:]] for words in base]
    texts = [" ".join(words) for words in (*base, *copies)]
    similar = NearDuplicates(0.8, texts.__getitem__)
    found = [similar.original_of(i, text) for i, text in enumerate(texts)]
    assert found == [None] * 50 + list(range(50))


@pytest.mark.parametrize(
    ("text", "expected", "kinds"),
    [
        ("write to ada.l+x@mail.example.org now", "write to <EMAIL> now", {"EMAIL": 1}),
        ("card 4111 1111 1111 1111.", "card <CARD>.", {"CARD": 1}),
        ("card 4111 1111 1111 1112.", "card 4111 1111 1111 1112.", {}),
        ("DE89 3704 0044 0532 0130 00 it is", "<IBAN> it is", {"IBAN": 1}),
        ("DE88 3704 0044 0532 0130 00 it is", "DE88 3704 0044 0532 0130 00 it is", {}),
        ("number 536-90-4399", "number <SSN>", {"SSN": 1}),
        ("number 666-90-4399 or 900-12-3456", "number 666-90-4399 or 900-12-3456", {}),
        ("host 10.1.2.3.", "host <IP_ADDRESS>.", {"IP_ADDRESS": 1}),
        ("version 10.1.2.3.4 and 300.1.1.1", "version 10.1.2.3.4 and 300.1.1.1", {}),
        ("loopback 127.0.0.1 stays", "loopback 127.0.0.1 stays", {}),
        ("at 2001:db8::8a2e:370:7334 now", "at <IP_ADDRESS> now", {"IP_ADDRESS": 1}),
        ("time 12:30:59 stays", "time 12:30:59 stays", {}),
        ("call +49 30 901820 now", "call <PHONE> now", {"PHONE": 1}),
        ("call (212) 555-0147", "call <PHONE>", {"PHONE": 1}),
        ("ISBN 978-3-16-148410-0", "ISBN 978-3-16-148410-0", {}),
        ("key AKIAIOSFODNN7EXAMPLE", "key <API_KEY>", {"API_KEY": 1}),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",
            "<PRIVATE_KEY>",
            {"PRIVATE_KEY": 1},
        ),
    ],
)
def test_personal_data(text: str, expected: str, kinds: dict[str, int]) -> None:
    assert redact(text) == (expected, Counter(kinds))


def test_checks_of_numbers() -> None:
    assert is_card("5500005555555559")
    assert not is_card("0000000000000000")
    assert is_iban("GB82 WEST 1234 5698 7654 32")
    assert not is_iban("GB82 WEST 1234 5698 7654 33")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PROSE * 3, None),
        ("short", "too_short"),
        (PROSE + "Lorem ipsum dolor sit amet", "placeholder_text"),
        ("a b c d " * 60, "unusual_word_length"),
        ("123 456 7890 " * 30, "few_words_with_letters"),
        ("a=+-*/<> b=()[]{} c=&&||!! " * 12, "many_symbols"),
        ("\n".join(["the same line again and again"] * 20), "repeated_lines"),
        ("buy now " * 40, "repeated_phrase"),
    ],
)
def test_quality(text: str, expected: str | None) -> None:
    assert fault(text, 100) == expected
