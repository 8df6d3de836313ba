"""Train a byte-level BPE tokenizer (Sennrich et al. 2016; bytes as in GPT-2) on the training split.

Byte-level: any text can be written, nothing is unknown. Training is deterministic for the same
texts in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import re2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from appliance.core.errors import InvalidInput

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
MAX_WORD = 256
"""Characters that are learnt from as one word: the time that one takes grows with its square."""
MAX_TEXT = 1 << 18
"""Characters of one document that are learnt from: no document decides what words there are."""
# Blanks as the tokenizer knows them; RE2's own are those of ASCII.
_BLANK = r"\s\x{0B}\x{85}\p{Z}"
_LONG_WORD = re2.compile(rf"[{_BLANK}]{{{MAX_WORD}}}|[^{_BLANK}]{{{MAX_WORD}}}")


def train(texts: Iterator[str], size: int) -> Tokenizer:
    """Return a tokenizer of exactly `size` entries; entry 0 is the end of text.

    Raises:
        InvalidInput: the texts are too few for so many entries.
    """
    tokenizer = learn(texts, size)
    found = tokenizer.get_vocab_size()
    if found != size:
        raise InvalidInput(
            f"the text gives a vocabulary of {found} entries, {size} were asked for: ask for fewer"
            " (--vocabulary-size) or add text"
        )
    return tokenizer


def learn(texts: Iterator[str], size: int) -> Tokenizer:
    """A tokenizer of at most `size` entries, to which the text of a special token is text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(bounded_words(texts), trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def bounded_words(texts: Iterator[str]) -> Iterator[str]:
    """The beginnings of texts, cut where a word or a gap is longer than `MAX_WORD`."""
    for whole in texts:
        text = whole[:MAX_TEXT]
        start = 0
        for found in _LONG_WORD.finditer(text):
            yield text[start : found.end()]
            start = found.end()
        yield text[start:]


def hugging_face_config(context_length: int = 1 << 20) -> dict[str, Any]:
    """`tokenizer_config.json` for the tokenizer, as transformers reads it."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
    }
