"""How long can one document hold a prepare job?

Documents that were made to be slow, 3 MiB each, through the steps that decide about them; those
that stay (the shortest text is no rule here) also through learning a tokenizer and writing tokens.
What is judged is processor time: a document waits for nothing.

The bars: `MAX_SECONDS` to decide about each, and at most `MAX_GROWTH` times as much for twice the
size, which linear time with a little cache is and the square is not; the same growth for what comes
after. Beside it the two patterns of version 0.1.0, on documents so much smaller that they end.
"""

from __future__ import annotations

import random
import re
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from appliance.jobs.prepare import vocabulary
from appliance.jobs.prepare.corpus import Document
from appliance.jobs.prepare.job import DROPPED, Judge, PrepareSettings
from appliance.jobs.prepare.normalize import normalize
from appliance.jobs.prepare.personal_data import redact
from bench.measure import AT_MOST, Bar, Contender, Outcome, compare, run, timed

NAME = "hostile_text"
SIZE = 3 << 20
MAX_SECONDS = 2.0
MAX_GROWTH = 2.2
ROUNDS = 5
CLOCK = 1e-3
_SETTINGS = PrepareSettings(
    vocabulary_size=512,
    threshold=0.8,
    validation_fraction=0.0,
    keep_personal_data=False,
    minimum_characters=0,
    shard_tokens=1 << 20,
    seed=0,
)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _repeated(pattern: str) -> Callable[[int], str]:
    return lambda size: pattern * (size // len(pattern.encode()))


def _words(size: int) -> str:
    """Words that are all different: the most shingles."""
    draw = random.Random(0)
    return " ".join("".join(draw.choices(_LETTERS, k=5)) for _ in range(size // 6))


def _han(size: int) -> str:
    """Letters that are words: the most pairs."""
    draw = random.Random(0)
    return "".join(chr(draw.randrange(0x4E00, 0x9FA5)) for _ in range(size // 3))


def _every_character(size: int) -> str:
    codes = (c for c in range(0x20, 0x110000) if not 0xD800 <= c < 0xE000)
    text = "".join(map(chr, codes))
    return (text * 2).encode()[:size].decode(errors="ignore")


DOCUMENTS: dict[str, Callable[[int], str]] = {
    "blanks in a line": lambda size: "a" + " " * (size - 2) + "x",
    "blank lines": _repeated(" \t\n"),
    "blanks of two kinds": _repeated(" \u3000"),
    "first lines of keys": _repeated("-----BEGIN PRIVATE KEY-----"),
    "keys in web tokens": _repeated("-eyJ-AKIAABCDEFGHIJKLMNOP"),
    "marks on one letter": lambda size: "a" + "\u0316" * (size // 2),
    "marks on every letter": _repeated("a" + "\u0316" * 31),
    "one word": lambda size: "".join(random.Random(0).choices(_LETTERS, k=size)),
    "mailboxes": _repeated("a@b.cc "),
    "halves of mailboxes": _repeated("a.b@c-d@"),
    "mailboxes without spaces": _repeated("\u5f20@\u4e09.\u4e2d\u56fda"),
    "heads of account numbers": _repeated("DE12AAAA"),
    "numbers": _repeated("4111-1111-1111-1111 212-555-0147 10.20.30.40 "),
    "digits and separators": _repeated("1-1 1.1 1:1 "),
    "joiners": _repeated("\u0915\u200d\u200c"),
    "every character": _every_character,
    "words that differ": _words,
    "letters that are words": _han,
}


ALIKE = "letters that are words, alike"
_READ = 4
"""Documents that each new one resembles, with a few parts that differ in each."""


def _alike(size: int) -> list[str]:
    """Texts of one writing; any two share 84 % of their words, which makes no duplicate."""
    text = _han(size)
    part = len(text) * 8 // 100
    return [
        text[: n * part] + text[n * part : (n + 1) * part][::-1] + text[(n + 1) * part :]
        for n in range(_READ + ROUNDS)
    ]


def _alike_row() -> dict[str, Any]:
    """Seconds to decide about a text that is compared with others as long."""
    taken: list[list[float]] = []
    for size in (SIZE // 2, SIZE):
        texts = _alike(size)
        judge = Judge(_SETTINGS, texts.__getitem__)
        seconds = []
        for number, text in enumerate(texts):
            start = time.process_time()
            judge.decide(Document(number, str(number), text))
            seconds.append(time.process_time() - start)
        taken.append(seconds[_READ:])
    growth = statistics.median(long / short for short, long in zip(*taken, strict=True))
    decided = statistics.median(taken[1])
    return {
        "document": ALIKE,
        "decided": decided,
        "decided_growth": growth,
        "written": 0.0,
        "written_growth": 0.0,
    }


def main() -> int:
    """Run it; 1 when a bar does not hold."""
    return run(NAME, measure)


def measure() -> Outcome:
    """Processor time of every document."""
    alternatives = _alternatives()
    rows = []
    print(f"\n{NAME}: seconds of processor time for 3 MiB, and times as much as for half of it")
    print(f"  {'':30}{'decided':>8}{'growth':>8}{'written':>9}{'growth':>8}")
    for name, make in DOCUMENTS.items():
        half, whole = make(SIZE // 2), make(SIZE)
        pairs = [(_seconds(half), _seconds(whole)) for _ in range(ROUNDS)]
        row: dict[str, Any] = {"document": name}
        for index, what in enumerate(("decided", "written")):
            row[what] = statistics.median(long[index] for _, long in pairs)
            row[f"{what}_growth"] = statistics.median(
                long[index] / max(short[index], CLOCK) for short, long in pairs
            )
        rows.append(row)
        _print(row)
    rows.append(_alike_row())
    _print(rows[-1])
    bars = [
        Bar(
            "slowest to be decided about, 3 MiB",
            max(row["decided"] for row in rows),
            "s",
            AT_MOST,
            MAX_SECONDS,
            ROUNDS,
        )
    ]
    for what in ("decided", "written"):
        # Below a tenth of a second the clock and the first touch of memory are what is measured.
        growth = [row[f"{what}_growth"] for row in rows if row[what] >= MAX_SECONDS / 20]
        name = f"time {what}, twice the size"
        bars.append(Bar(name, max(growth), "times", AT_MOST, MAX_GROWTH, ROUNDS))
    return Outcome(bars, {"results": rows, "alternatives": alternatives})


def _print(row: dict[str, Any]) -> None:
    print(
        f"  {row['document']:30}{row['decided']:>8.2f}{row['decided_growth']:>8.2f}"
        f"{row['written']:>9.2f}{row['written_growth']:>8.2f}",
        flush=True,
    )


def _seconds(text: str) -> tuple[float, float]:
    """Processor time of deciding about a document, and of the two passes after it."""
    start = time.process_time()
    judge = Judge(_SETTINGS, lambda _: text)
    judge.decide(Document(0, "hostile", text))
    decided = time.process_time()
    if judge.decisions.splits[0] != DROPPED:
        tokenizer = vocabulary.learn(iter([redact(normalize(text)).text]), 512)
        tokenizer.encode_batch_fast([redact(normalize(text)).text])
    return decided - start, time.process_time() - decided


def _alternatives() -> list[dict[str, Any]]:
    blanks, keys = DOCUMENTS["blanks in a line"](1 << 14), DOCUMENTS["first lines of keys"](1 << 16)
    trailing = re.compile(r"[ \t\u00a0]+$", re.MULTILINE)
    pem = re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL
    )
    lines = compare(
        f"{NAME}_blanks",
        "documents of 16 KiB a second",
        Contender("ours", timed(lambda: normalize(blanks), 1)),
        Contender("a pattern with a repeat before $", timed(lambda: trailing.sub("", blanks), 1)),
        rounds=ROUNDS,
    )
    first_lines = compare(
        f"{NAME}_keys",
        "documents of 64 KiB a second",
        Contender("ours, all patterns", timed(lambda: redact(keys), 1)),
        Contender("the one pattern of 0.1.0", timed(lambda: pem.sub("", keys), 1)),
        rounds=ROUNDS,
    )
    return [lines, first_lines]


if __name__ == "__main__":
    sys.exit(main())
