"""Each step of a prepare job against answers written by hand."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.api.jobs.v1.job_pb2 import PrepareSpec
from appliance.jobs.prepare import duplicates, personal_data, vocabulary
from appliance.jobs.prepare.duplicates import (
    ExactDuplicates,
    NearDuplicates,
    jaccard,
    shingles,
)
from appliance.jobs.prepare.job import PrepareSettings
from appliance.jobs.prepare.normalize import MAX_MARKS, normalize
from appliance.jobs.prepare.personal_data import iban_in, is_card, redact
from appliance.jobs.prepare.quality import fault
from appliance.jobs.prepare.scripts import words_of, writing_of

# Six languages as a customer sent them, and Article 1 of the Universal Declaration of Human Rights
# (United Nations, 1948, in the public domain) in others, with what follows it where that is short;
# then what is easily lost: two scripts in one text, points and breaks between words, joiners at
# their ends.
DOCUMENTS = {
    document["id"]: document["text"]
    for document in map(
        json.loads,
        Path(__file__).with_name("languages.jsonl").read_text(encoding="utf-8").splitlines(),
    )
}
TOKEN = "sla_svc_0123456789abcdef_" + "abcdefghijklmnopqrstuvwxyz234567" + "a" * 20 + "_89abcdef"
SCRIPTS = {
    "zh0": "Han",
    "ja0": "Hiragana",
    "th0": "Thai",
    "hi0": "Devanagari",
    "fa0": "Arabic",
    "en0": "Latin",
    "ru": "Cyrillic",
    "el": "Greek",
    "ko": "Hangul",
    "he": "Hebrew",
    "ta": "Tamil",
    "bn": "Bengali",
    "ka": "Georgian",
    "hy": "Armenian",
    "am": "Ethiopic",
    "my": "Myanmar",
    "km": "Khmer",
    "lo": "Lao",
    "bo": "Tibetan",
    "kl": "Latin",
    "mixed": "Latin",
    "am_points": "Ethiopic",
    "ml": "Malayalam",
    "bn_khanda": "Bengali",
    "fa_joiner": "Arabic",
    "km_breaks": "Khmer",
    "th_breaks": "Thai",
}
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
        # What separates words goes on doing so.
        ("one\x0ctwo\x85three\x0bfour\u2028five", "one\ntwo\nthree\nfour\nfive"),
        ("soft\u00adhyphen \U000e0041tag\u061c", "softhyphen tag"),
        # Joiners shape letters of Persian and Hindi, and emoji; elsewhere they are none.
        (
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        ),
        (
            "\u0915\u094d\u200d\u0937 \u0915\u200c\u200c\u0937",
            "\u0915\u094d\u200d\u0937 \u0915\u200c\u0937",
        ),
        (
            "\U0001f469\u200d\U0001f4bb \u2764\ufe0f\u200d\U0001f525",
            "\U0001f469\u200d\U0001f4bb \u2764\ufe0f\u200d\U0001f525",
        ),
        ("Auf\u200clage\u200d. \u0645\u200c", "Auflage. \u0645\u200c"),
        ("half \ud800 of a pair", "half  of a pair"),
        ("unit\x1fseparated", "unit separated"),
        ("\u0647\u200d.\u0634", "\u0647\u200d.\u0634"),
        ("അവന്\u200d പോയി", "അവന്\u200d പോയി"),
        ("ก\u200bข a\u200bb \u200bก", "ก\u200bข ab ก"),
        ("a" + "\u0316" * 500, "a" + "\u0316" * MAX_MARKS),
        ("a" + "\u0344" * 500, "\u00e4\u0301" + "\u0308\u0301" * 14 + "\u0308"),
    ],
)
def test_normalize(text: str, expected: str) -> None:
    assert normalize(text) == expected


@given(
    st.text(max_size=200)
    | st.text(
        st.sampled_from(
            "a\u0301\u0344\u0316\u0958\u200c\u200d\u0915\u094d\u0645\r\n \u00a0\x85\U0001f469"
            "\u200b\u0e01\u0e48\u1780\u17d2\u064b\x1f\x1e\u00ad\ufe0f\u2764\u1361\u1230\u3042\U000e0061"
            "\u0f40\u0f73\u0f71\u3099\u1100\u1161\u2126\u0390"
        ),
        max_size=80,
    )
    | st.sampled_from(("m", "\u0645", "\u0e01", "\U0001f469")).flatmap(
        lambda first: st.text(
            st.sampled_from("\u0316\u064b\u200d\u200c\u200b\u0645"), max_size=80
        ).map(lambda rest: first + "\u0316" * 29 + rest)
    )
)
@example("\u0e01\u200b\u0f73\u094d")
@example("\u0645" + "\u0316" * 30 + "\u064b\u200d\u0645")
def test_normalizing_twice_changes_nothing(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once


def test_exact_duplicates_ignore_case_and_spacing() -> None:
    seen = ExactDuplicates()
    seen.remember("One  two\nthree")
    assert [seen.is_repeated(t) for t in ("one two three", "one two four")] == [True, False]


def originals(similar: NearDuplicates, texts: list[list[str]]) -> list[int | None]:
    """Of each text in its turn; those that have none are kept."""
    found = []
    for number, words in enumerate(texts):
        compared = similar.compare(words)
        if compared.original is None:
            similar.remember(number, compared)
        found.append(compared.original)
    return found


def test_jaccard_of_shingles() -> None:
    one, other = shingles(["a", "b", "c", "d", "e", "f"]), shingles(["a", "b", "c", "d", "e", "g"])
    assert one == {"a b c d e", "b c d e f"}
    assert jaccard(one, other) == pytest.approx(1 / 3)
    assert jaccard(shingles(["a", "b"]), shingles(["A", "B"])) == 1.0


def test_near_duplicates_drop_only_what_truly_reaches_the_threshold() -> None:
    words = [f"word{i}" for i in range(200)]
    near, far = list(words), list(words)
    near[100] = "changed"  # 5 of 196 shingles differ: similarity 191 / 201
    for place in range(0, 200, 10):
        far[place] = f"other{place}"  # 20 changes: similarity about a third
    texts = [words, near, far]
    similar = NearDuplicates(0.8, texts.__getitem__)
    assert originals(similar, texts) == [None, 0, None]


def test_planted_near_duplicates_are_found() -> None:
    base = [[f"w{i}x{j}" for j in range(120)] for i in range(50)]
    copies = [[*words[:60], "edited", *words[61:]] for words in base]
    texts = [*base, *copies]
    similar = NearDuplicates(0.8, texts.__getitem__)
    found = originals(similar, texts)
    assert found == [None] * 50 + list(range(50))


def test_filled_in_forms_are_compared_with_a_few_of_them() -> None:
    """Sixty forms, each like every other but no duplicate, and one that was handed in twice.

    It was among the first; the signatures of all others say that they are none.
    """
    form = [f"line{i}" for i in range(100)]
    texts = [[*form, *(f"answer{number}x{i}" for i in range(40))] for number in range(60)]
    texts.append([*texts[3][:-1], "other"])
    read: list[int] = []

    def words_of_number(number: int) -> list[str]:
        read.append(number)
        return texts[number]

    similar = NearDuplicates(0.8, words_of_number)
    found = originals(similar, texts)
    assert found == [None] * 60 + [3]
    assert read == [3]


def test_long_texts_are_compared_in_the_same_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_WORDS", 1000)
    words = [f"word{i}" for i in range(4000)]
    near = [*words[:50], "changed", *words[51:]]
    far = [word if i % 2 else f"other{i}" for i, word in enumerate(words)]
    assert len(shingles(words)) < 1000
    texts = [words, near, far]
    assert originals(NearDuplicates(0.8, texts.__getitem__), texts) == [None, 0, None]


def test_of_long_candidates_a_few_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each resembles the others by its signature, and none is a duplicate."""
    monkeypatch.setattr(duplicates, "MAX_WORDS", 300)
    form = [f"line{i}" for i in range(200)]
    texts = [[*form, *(f"answer{number}x{i}" for i in range(30))] for number in range(8)]
    read: list[int] = []

    def words_of_number(number: int) -> list[str]:
        read.append(number)
        return texts[number]

    similar = NearDuplicates(0.9, words_of_number)
    assert originals(similar, texts[:-1]) == [None] * 7
    read.clear()
    similar.compare(texts[-1])
    assert len(read) <= 2


def test_near_duplicates_are_found_where_words_have_no_spaces() -> None:
    found = []
    for language in ("zh0", "th0", "my"):
        text = DOCUMENTS[language]
        words = [words_of(t, writing_of(t)) for t in (text, text[:-1] + "!")]
        similar = NearDuplicates(0.8, words.__getitem__)
        found.append(originals(similar, words))
    assert found == [[None, 0]] * 3


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
        (f"ours: {TOKEN}.", "ours: <API_KEY>.", {"API_KEY": 1}),
        ("github_pat_" + "11ABCDEFG0" * 6, "<API_KEY>", {"API_KEY": 1}),
        ("AIza" + "SyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY"[:35], "<API_KEY>", {"API_KEY": 1}),
        ("sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc", "<API_KEY>", {"API_KEY": 1}),
        ("hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567", "<API_KEY>", {"API_KEY": 1}),
        ("glpat-" + "x7Yz_K9mNpQr2StUvWxY", "<API_KEY>", {"API_KEY": 1}),
        ("sk-proj-" + "a1B2c3D4e5F6g7H8i9J0", "<API_KEY>", {"API_KEY": 1}),
        ("sk-learn-and-other-words-2023", "sk-learn-and-other-words-2023", {}),
        ("an jürgen@büro.example!", "an <EMAIL>!", {"EMAIL": 1}),
        ("icon@2x.png and git@github.com", "icon@2x.png and git@github.com", {}),
        ("de89-3704-0044-0532-0130-00 it is", "<IBAN> it is", {"IBAN": 1}),
        ("AT61 1904 3002 3457 3201 for", "<IBAN> for", {"IBAN": 1}),
        ("release 1.2.3.4 of it", "release 1.2.3.4 of it", {}),
        ("from fe80::1ff:fe23:4567:890a on", "from <IP_ADDRESS> on", {"IP_ADDRESS": 1}),
        ("2001:db8::1a2b:3c4d: timeout", "<IP_ADDRESS>: timeout", {"IP_ADDRESS": 1}),
        ("at 2001:db8:0:1:2:3:4:5:", "at <IP_ADDRESS>:", {"IP_ADDRESS": 1}),
        ("2001:db8::1a2b:3c4d:\nno", "<IP_ADDRESS>:\nno", {"IP_ADDRESS": 1}),
        ("10.1.2.3 10.1.2.4", "<IP_ADDRESS> <IP_ADDRESS>", {"IP_ADDRESS": 2}),
        (
            (
                "-----BEGIN PRIVATE KEY----- is the first line.\n"
                "-----BEGIN EC PRIVATE KEY-----\nab\n-----END EC PRIVATE KEY-----\nthe rest"
            ),
            "-----BEGIN PRIVATE KEY----- is the first line.\n<PRIVATE_KEY>\nthe rest",
            {"PRIVATE_KEY": 1},
        ),
        (
            "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nends here",
            "<PRIVATE_KEY>\nends here",
            {"PRIVATE_KEY": 1},
        ),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",
            "<PRIVATE_KEY>",
            {"PRIVATE_KEY": 1},
        ),
    ],
)
def test_personal_data(text: str, expected: str, kinds: dict[str, int]) -> None:
    found = redact(text)
    assert (found.text, found.found, found.fault) == (expected, Counter(kinds), "")


def test_a_list_of_people_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(personal_data, "MAX_CANDIDATES", 10)
    assert redact("ada@example.org 1.2.3.4 " * 4).fault == ""
    assert redact("ada@example.org 1.2.3.4 " * 5).fault == "too_much_personal_data"


def test_looking_for_personal_data_ends_when_the_time_is_over() -> None:
    assert redact("ada@example.org " * 1000, time.thread_time()).fault == "too_slow"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Letters that only look like those of ASCII to a pattern without case.
        ("DE8937040044053201\u017f000 ok", "DE8937040044053201\u017f000 ok"),
        # Words without spaces around a mailbox.
        ("กา" * 40 + "somchai@corp.co.th", "กา" * 40 + "<EMAIL>"),
        ("请联系zhang@corp.cn获取更多", "请联系<EMAIL>获取更多"),
        ("是 名前@例え.jp 吗", "是 <EMAIL> 吗"),
        ("müllera@corp.de", "<EMAIL>"),
        ("x" * 100 + "@corp.de", "x" * 36 + "<EMAIL>"),
        # Numbers beside others.
        ("2025-01-02 4111111111111111", "2025-01-02 <CARD>"),
        ("row 1 4111 1111 1111 1111", "row 1 <CARD>"),
        ("1234 4111 1111 1111 1111", "1234 <CARD>"),
        ("4111-1111-1111-1111 123", "<CARD> 123"),
        ("AB12 DE89 3704 0044 0532 0130 00", "AB12 <IBAN>"),
        ("NO9386011117947x", "NO9386011117947x"),
        ("08-15-2024 10:30:00", "08-15-2024 10:30:00"),
        ("05-12-2023 14:30", "05-12-2023 14:30"),
        ("05/12/2023 1430 is", "05/12/2023 1430 is"),
        ("08-15-2024 030 90182345", "08-15-2024 <PHONE>"),
        # As typesetters write them.
        ("4111\u00a01111\u00a01111\u00a01111", "<CARD>"),
        ("DE89\u202f3704\u202f0044\u202f0532\u202f0130\u202f00", "<IBAN>"),
        ("536\u201190\u20114399", "<SSN>"),
        ("+49\u200930\u2009901820", "<PHONE>"),
        # Short forms of addresses, and names in programs.
        ("fd00::1 and 2a02::5", "<IP_ADDRESS> and <IP_ADDRESS>"),
        ("2001:0db8:85a3:0000:0000:8a2e:0370:7334", "<IP_ADDRESS>"),
        ("dead::beef, a::b1 and 12:30:45", "dead::beef, a::b1 and 12:30:45"),
        # In a string of a program.
        (r'"\nghp_' + "a1" * 18 + '"', r'"\n<API_KEY>"'),
        (
            (
                "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n"
                "DEK-Info: DES-EDE3-CBC,9F\n\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nends"
            ),
            "<PRIVATE_KEY>\nends",
        ),
        (r"-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC", "<PRIVATE_KEY>"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghij_k", "<API_KEY>"),
        (
            "eyJhbGciOiJIUzI1NiJ9 and eyJhbGciOiJIUzI1NiJ9.x",
            "eyJhbGciOiJIUzI1NiJ9 and eyJhbGciOiJIUzI1NiJ9.x",
        ),
    ],
)
def test_personal_data_beside_what_looks_like_it(text: str, expected: str) -> None:
    assert redact(text).text == expected


@pytest.mark.parametrize("long", ["x" * 1000, " \u3000" * 500, "\u3042" * 1000, "\x0b\x85" * 500])
def test_no_word_or_gap_that_is_learnt_from_is_long(long: str) -> None:
    pieces = list(vocabulary.bounded_words(iter([f"a {long} b"])))
    assert "".join(pieces) == f"a {long} b"
    assert max(map(len, pieces)) <= vocabulary.MAX_WORD + 2


def test_checks_of_numbers() -> None:
    assert is_card("5500005555555559")
    assert not is_card("0000000000000000")
    assert iban_in("GB82 WEST 1234 5698 7654 32") == (0, 27)
    assert iban_in("GB82 WEST 1234 5698 7654 33") is None


def judged(text: str) -> str | None:
    writing = writing_of(text)
    return fault(
        text, words_of(text, writing), writing, PrepareSettings.of(PrepareSpec()).minimum_characters
    )


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
    assert judged(text) == expected


@pytest.mark.parametrize("language", DOCUMENTS)
def test_no_language_is_dropped_as_a_whole(language: str) -> None:
    text = normalize(DOCUMENTS[language])
    assert judged(text) is None
    assert len(text) >= 0.99 * len(DOCUMENTS[language].strip())


@pytest.mark.parametrize(("language", "script"), SCRIPTS.items())
def test_scripts(language: str, script: str) -> None:
    assert writing_of(DOCUMENTS[language]).main == script


def test_noise_is_dropped_in_every_script() -> None:
    """What the rules are for, of the letters of each language."""
    found: dict[tuple[str, str], str | None] = {}
    for language in SCRIPTS:
        letter = next(c for c in DOCUMENTS[language] if c.isalpha())
        noise = {
            "repeated_phrase": f"{letter * 3} {letter * 4} " * 60,
            "many_symbols": f"{letter}=+{letter}*/ <{letter}>-{letter}&&| " * 30,
            "few_words_with_letters": f"{letter} 1234 5678 9012 3456 " * 30,
        }
        for reason, text in noise.items():
            if judged(text) != reason:
                found[language, reason] = judged(text)
    assert found == {}
