"""The token ids that the files of a model name, in each of the places where one can stand. Pure.

The attack: an id that the embedding has no row for, which ends an engine or reads beside it.

Called by `appliance.core.model_files`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

TOKENIZER = "tokenizer.json"
CONFIGS = frozenset({"config.json", "generation_config.json"})
_MAX_DIGITS = 18
"""Of a token id that is written as a text."""

# Members of a configuration whose numbers are token ids, beside those named *_token_id.
_TOKENS = frozenset(
    {"bad_words_ids", "begin_suppress_tokens", "force_words_ids", "forced_decoder_ids"}
    | {"sequence_bias", "suppress_tokens"}
)


def token_ids(file: str, value: Mapping[str, Any]) -> Iterator[int]:
    """The token ids that a file names.

    Args:
        file: its name, which says what it is.
        value: the object in it.
    """
    if file in CONFIGS:
        for key, found in value.items():
            if key.endswith("_token_id") or key in _TOKENS:
                yield from _numbers(found)
    elif file in {"vocab.json", "added_tokens.json"}:
        yield from filter(_whole, value.values())
    elif file == "tokenizer_config.json":
        added = value.get("added_tokens_decoder")
        if isinstance(added, dict):
            yield from (int(key) for key in added if key.isdecimal() and len(key) <= _MAX_DIGITS)
    elif file == TOKENIZER:
        yield from _of_tokenizer(value)


def _of_tokenizer(value: Mapping[str, Any]) -> Iterator[int]:
    model, added = value.get("model"), value.get("added_tokens")
    words = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(words, dict):
        yield from filter(_whole, words.values())
    elif isinstance(words, list):
        yield len(words) - 1
    if isinstance(added, list):
        yield from (n for t in added if isinstance(t, dict) and _whole(n := t.get("id")))
    yield from _processed(value.get("post_processor"))


def _processed(processor: object) -> Iterator[int]:
    """Ids of the tokens that a post-processor puts around a text, whichever kind it is."""
    waiting = [processor]
    while waiting:
        item = waiting.pop()
        if not isinstance(item, dict):
            continue
        processors, tokens = item.get("processors"), item.get("special_tokens")
        waiting.extend(processors if isinstance(processors, list) else ())
        for token in tokens.values() if isinstance(tokens, dict) else ():
            yield from _numbers(token.get("ids") if isinstance(token, dict) else None)
        yield from _numbers([item.get("sep"), item.get("cls")])


def _numbers(value: object) -> Iterator[int]:
    """Whole numbers in lists within lists."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if _whole(item):
            yield item
        elif isinstance(item, list):
            waiting.extend(item)


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
