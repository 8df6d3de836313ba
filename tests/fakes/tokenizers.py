"""Tokenizers of the kinds that are in the field, small enough to be made here."""

from __future__ import annotations

import functools
import json

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = (
    "The quick brown fox doesn't jump over 12345 lazy dogs, they're asleep. ",
    "Es war einmal ein Modell, das über 日本語 und Ελληνικά sprach: naïve Fragen! ",
    "def f(x):\n    return x * 2  # doubles\n\n\nprint(f(3))\n",
    "한국어 문장도 있고, עברית וגם العربية, ไทย และ हिन्दी के शब्द। ",
)
CONTROLS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _trained(pre: pre_tokenizers.PreTokenizer) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=CONTROLS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    return made


@functools.cache
def gpt2() -> Tokenizer:
    """Byte-level, with GPT-2's words."""
    return _trained(pre_tokenizers.ByteLevel(add_prefix_space=False))


@functools.cache
def prefixed() -> Tokenizer:
    """The same with a space before each text, as RoBERTa's, and tokens around it."""
    made = _trained(pre_tokenizers.ByteLevel(add_prefix_space=True))
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return made


@functools.cache
def llama3() -> Tokenizer:
    """Byte-level with Llama 3's words and normal forms, as Qwen 2 has them."""
    made = _trained(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    )
    made.normalizer = normalizers.NFC()
    return made


def _pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of bytes, letters and words that begin with a space, and its merges."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for letter in ["▁", *"abcdefghijklmnopqrstuvwxyz<>|_/.,é"]:
        vocabulary[letter] = len(vocabulary)
    merges: list[tuple[str, str]] = []
    words = ("▁▁", "▁t", "th", "▁th", "he", "▁the", "an", "▁an", "▁and", "</", "s>", "</s>")
    for word in words:
        cuts = ((word[:cut], word[cut:]) for cut in range(1, len(word)))
        merges += [cut for cut in cuts if vocabulary.keys() >= set(cut)]
        vocabulary.setdefault(word, len(vocabulary))
    return vocabulary, merges


@functools.cache
def llama2() -> Tokenizer:
    """Spaces as `▁`, unknown letters as bytes, and no words: as Llama 2's."""
    vocabulary, merges = _pieces()
    made = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"
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
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    made.add_special_tokens(["<unk>", *CONTROLS])
    made.add_tokens([AddedToken(text, normalized=False) for text in ("<think>", "</think>")])
    return made


@functools.cache
def gemma() -> Tokenizer:
    """As Llama 2's, without a space before a text, and with a split that finds nothing."""
    state = json.loads(llama2().to_str())
    state["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    state["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    state["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    }
    return Tokenizer.from_str(json.dumps(state))


@functools.cache
def metaspace() -> Tokenizer:
    """Words behind spaces by a pre-tokenizer, as newer files of Llama 2's kind."""
    state = json.loads(llama2().to_str())
    state["normalizer"] = None
    state["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": True,
    }
    return Tokenizer.from_str(json.dumps(state))


@functools.cache
def unigram() -> Tokenizer:
    """A vocabulary with scores, whose control tokens are entries like others."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", *CONTROLS], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    return made


@functools.cache
def wordpiece() -> Tokenizer:
    """As BERT's."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]", *CONTROLS], show_progress=False
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    return made


KINDS = {
    maker.__name__: maker
    for maker in (gpt2, prefixed, llama3, llama2, gemma, metaspace, unigram, wordpiece)
}
