"""What a `tokenizer.json` says before it is used: control tokens, lengths, and where to cut.

A tokenizer turns the text of a control token (`<|im_end|>`) into that token wherever it stands, so
a caller who writes one could end his turn and begin the system's. Here each control token gets a
name that nobody can guess, made anew in each process. Whoever may write a control token writes its
name; its text is text like any other (`docs/decisions/0019-control-tokens-by-name.md`).

Rules kept here:
* every id stays what it was: entries are renamed where they stand, never removed or moved;
* neither merges nor a lookup of whole words can make a control token of its text;
* a bound on the length of tokens is given only where every byte of a text needs its token.

The attack: content that spells control tokens. Pure. Called by `appliance.gateway.tokenize`.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_MARK = re.compile(r"[^\w\s].*[^\w\s]")
_BRACKETED = re.compile("<[|\uff5c].*[|\uff5c]>")
# What makes a pattern look at more than the text from where it is on.
_LOOKS_BACK = re.compile(r"\(\?<|(?<!\[)\^|\\[bBAG]")
SPACE = "▁"
_BYTES = 256
# How many bytes of a text one byte of its normal form can stand for, at most: a character of up to
# four parts, each of up to four bytes, becomes one of at least two (UAX 15).
_COMPOSED = 8
_MIN_LETTER = 3


@dataclass(frozen=True)
class ControlToken:
    """A token that is none of a caller's words.

    Attributes:
        name: stands for it in texts that may hold it.
        added: whether the tokenizer looks for it in texts at all; others only an engine makes.
        whole_word: it counts only between characters that belong to no word.
    """

    id: int
    text: str
    name: str
    added: bool
    whole_word: bool


@dataclass(frozen=True)
class Vocabulary:
    """What is known of a tokenizer.

    Attributes:
        document: the tokenizer's JSON with the names of control tokens in place of their texts.
        controls: the control tokens.
        size: every id is below it.
        longest: bytes of text that one token can stand for at most; None when there is no bound.
        cuts: a text may be cut before one of these characters behind a letter; empty: nowhere.
        beginning: whether it treats the beginning of a text differently from its middle.
    """

    document: dict[str, Any]
    controls: tuple[ControlToken, ...]
    size: int
    longest: int | None
    cuts: str
    beginning: bool


def read(
    tokenizer_json: str, template: str, others: Iterable[str], ends: Iterable[int]
) -> Vocabulary:
    """Look at a tokenizer.

    Args:
        tokenizer_json: of the model.
        template: of the model; what it writes of the added tokens are control tokens.
        others: texts of further control tokens, such as those that begin and end a sequence.
        ends: ids of further control tokens.

    Raises ValueError, KeyError or TypeError for what is no tokenizer.
    """
    document = json.loads(tokenizer_json)
    ids = _ids(document)
    controls = tuple(_controls(document, ids, template, set(others), set(ends)))
    _rename(document, {control.text: control.name for control in controls})
    names = {control.name for control in controls}
    return Vocabulary(
        document,
        controls,
        max(ids.values(), default=-1) + 1,
        _longest(document, names),
        _cuts(document),
        _has_beginning(document),
    )


def without_beginning(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same tokenizer for a text that goes on from another: nothing is put before it."""

    def inner(part: dict[str, Any]) -> dict[str, Any] | None:
        if part["type"] == "Prepend":
            return None
        changes = {"add_prefix_space": False, "prepend_scheme": "never"}
        return part | {key: value for key, value in changes.items() if key in part}

    changed = dict(document)
    for member, list_name in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        parts = [new for part in _parts(document, member) if (new := inner(part)) is not None]
        changed[member] = {"type": "Sequence", list_name: parts} if parts else None
    return changed


def _vocabulary(document: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Tokens and ids of the model, added ones apart."""
    entries = document["model"]["vocab"]
    if isinstance(entries, dict):
        yield from entries.items()
    else:
        yield from ((entry[0], number) for number, entry in enumerate(entries))


def _ids(document: Mapping[str, Any]) -> dict[str, int]:
    added = {token["content"]: token["id"] for token in document.get("added_tokens") or ()}
    return added | dict(_vocabulary(document))


def _controls(
    document: Mapping[str, Any],
    ids: Mapping[str, int],
    template: str,
    others: set[str],
    ends: set[int],
) -> Iterator[ControlToken]:
    added = {token["content"]: token for token in document.get("added_tokens") or ()}
    special = {text for text, token in added.items() if token.get("special") and text.strip()}
    written = {text for text in added if text in template and _MARK.fullmatch(text)}
    bracketed = {text for text in added if _BRACKETED.fullmatch(text)}
    ended = {text for text, number in ids.items() if number in ends and _MARK.fullmatch(text)}
    known = {text for text in others if text in ids and _MARK.fullmatch(text)}
    for text in sorted(special | written | bracketed | ended | known):
        name = f"<|{secrets.token_hex(16)}|>"
        whole_word = bool(added.get(text, {}).get("single_word", False))
        yield ControlToken(ids[text], text, name, text in added, whole_word)


def _rename(document: dict[str, Any], names: Mapping[str, str]) -> None:
    """Give control tokens their names, everywhere in the document."""
    prepends = any(part["type"] == "Prepend" for part in _parts(document, "normalizer"))
    for token in document.get("added_tokens") or ():
        if token["content"] in names:
            token["content"] = names[token["content"]]
            # What is put before a text would be looked for before the token, too.
            token["normalized"] = token.get("normalized", False) and not prepends
    model = document["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(text, text): number for text, number in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if model.get("merges"):
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            merge for merge in model["merges"] if not _makes(_pair(merge), prefix, names)
        ]


def _pair(merge: Any) -> tuple[str, str]:  # noqa: ANN401 - two texts, in either of two forms
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _makes(pair: tuple[str, str], prefix: str, names: Mapping[str, str]) -> bool:
    """Whether a merge makes a control token, or something of one."""
    left, right = pair
    return left in names or right in names or left + right.removeprefix(prefix) in names


def _parts(document: Mapping[str, Any], member: str) -> list[dict[str, Any]]:
    """The normalizers or pre-tokenizers in their order, without the sequences around them."""
    found: list[dict[str, Any]] = []
    left = [document.get(member)]
    while left:
        part = left.pop(0)
        if part is None:
            continue
        if part["type"] == "Sequence":
            left = [*(part.get("normalizers") or part.get("pretokenizers") or ()), *left]
        else:
            found.append(part)
    return found


def _has_beginning(document: Mapping[str, Any]) -> bool:
    return any(
        part["type"] == "Prepend"
        or part.get("add_prefix_space")
        or part.get("prepend_scheme", "never") != "never"
        for member in ("normalizer", "pre_tokenizer")
        for part in _parts(document, member)
    )


def _longest(document: Mapping[str, Any], names: set[str]) -> int | None:
    """Bytes that a token can stand for. None unless every byte of a text needs a token."""
    byte_level = any(part["type"] == "ByteLevel" for part in _parts(document, "pre_tokenizer"))
    tokens = {text for text, _ in _vocabulary(document)}
    if not _covers_bytes(document["model"], tokens, byte_level=byte_level):
        return None
    if any(_drops_text(part) for part in _parts(document, "pre_tokenizer")):
        return None
    shrinking = _shrinking(_parts(document, "normalizer"))
    if shrinking is None:
        return None
    added = document.get("added_tokens") or ()
    if any(token.get("lstrip") or token.get("rstrip") for token in added):
        # They take the white space beside them with them, as much as there is.
        return None
    sizes = (len(text) if byte_level else len(text.encode()) for text in tokens - names)
    others = (len(token["content"].encode()) for token in added if token["content"] not in names)
    return max(max(sizes, default=1), max(others, default=1)) * shrinking


def _covers_bytes(model: Mapping[str, Any], tokens: set[str], *, byte_level: bool) -> bool:
    if model.get("type") != "BPE":
        return False
    if byte_level:
        return sum(len(token) == 1 for token in tokens) >= _BYTES
    return bool(model.get("byte_fallback")) and all(
        f"<0x{byte:02X}>" in tokens for byte in range(_BYTES)
    )


def _drops_text(part: Mapping[str, Any]) -> bool:
    kind = part["type"]
    if kind in ("Split", "Punctuation"):
        return bool(part.get("behavior") == "Removed")
    return kind not in ("ByteLevel", "Metaspace", "Digits", "UnicodeScripts")


def _shrinking(parts: Iterable[Mapping[str, Any]]) -> int | None:
    """Bytes of text for a byte of its normal form, at most; None without a bound."""
    factor = 1
    for part in parts:
        kind, pattern = part["type"], part.get("pattern", {}).get("String")
        if kind in ("NFC", "NFKC"):
            factor *= _COMPOSED
        elif kind == "Lowercase":
            factor *= _MIN_LETTER
        elif kind == "Replace" and pattern and part["content"]:
            factor *= max(1, -(-len(pattern.encode()) // len(part["content"].encode())))
        elif kind != "Prepend":
            return None
    return factor


def _cuts(document: Mapping[str, Any]) -> str:
    """Where the tokens of two parts of a text are those of the whole, whatever the text.

    Behind a letter and before a space no character is composed (UAX 15, 9.1). Beyond that, either
    a pre-tokenizer begins a new word there and looks at nothing before it; or spaces become `▁`,
    and no token has one behind another character, so that no token can reach over the cut.
    """
    normalizers = _parts(document, "normalizer")
    if any(not _is_local(part) for part in normalizers):
        return ""
    words = _parts(document, "pre_tokenizer")
    if any(part["type"] == "ByteLevel" for part in words):
        return " \n" if all(_splits_alike(part) for part in words) else ""
    if any(part["type"] == "Metaspace" and part.get("split", True) for part in words):
        return " " if len(words) == 1 else ""
    if any(part["type"] in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit") for part in words):
        return " \n" if len(words) == 1 else ""
    spaced = any(_writes_spaces(part) for part in [*normalizers, *words])
    others = all(_writes_spaces(part) or _splits_at_spaces(part) for part in words)
    tokens = [text for text, _ in _vocabulary(document)]
    apart = SPACE in tokens and all(SPACE not in text.lstrip(SPACE) for text in tokens)
    return " " if spaced and others and apart else ""


def _is_local(part: Mapping[str, Any]) -> bool:
    if part["type"] == "Replace":
        return len(part.get("pattern", {}).get("String", "")) == 1
    return part["type"] in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "BertNormalizer")


def _writes_spaces(part: Mapping[str, Any]) -> bool:
    replaces = part["type"] == "Replace" and part.get("pattern") == {"String": " "}
    return (replaces and part.get("content") == SPACE) or part["type"] == "Metaspace"


def _splits_at_spaces(part: Mapping[str, Any]) -> bool:
    return part["type"] == "Split" and part.get("pattern") == {"String": " "}


def _splits_alike(part: Mapping[str, Any]) -> bool:
    """Whether a pre-tokenizer goes from left to right and sees nothing before where it is."""
    if part["type"] == "Split":
        return _LOOKS_BACK.search(part["pattern"].get("Regex", "")) is None
    return part["type"] in ("ByteLevel", "Digits", "Punctuation")
