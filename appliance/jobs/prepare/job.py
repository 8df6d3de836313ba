"""Run a prepare job: decide about every document once, then learn a vocabulary, then write tokens.

Three passes over the sealed input. The first decides which documents stay, with a memory of a few
hundred bytes per document; the second and third derive the clean text of those again, so that no
plaintext is ever set down between passes.

A text is judged by its quality before it is compared with others, so that no document is dropped
for the sake of one that is dropped itself.
"""

from __future__ import annotations

import hashlib
import json
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from appliance.api.jobs.v1 import job_pb2
from appliance.core.errors import InvalidInput
from appliance.core.values import given
from appliance.crypto.artifacts import ArtifactWriter
from appliance.jobs.prepare import vocabulary
from appliance.jobs.prepare.corpus import Corpus, Document
from appliance.jobs.prepare.duplicates import ExactDuplicates, NearDuplicates
from appliance.jobs.prepare.normalize import normalize
from appliance.jobs.prepare.personal_data import TOO_SLOW, redact
from appliance.jobs.prepare.quality import fault
from appliance.jobs.prepare.report import EXCERPT, PrepareStep, dropped_by_reason
from appliance.jobs.prepare.scripts import words_of, writing_of
from appliance.jobs.prepare.shards import ShardWriter, dtype_for
from appliance.jobs.runtime.context import Context

TRAIN, VALIDATION, DROPPED = 1, 2, 0
_EVERY = 200
"""Documents between two reports of progress."""
_BATCH = 256
"""Documents tokenized at once, and their characters: a token takes some 140 bytes meanwhile."""
_BATCH_CHARACTERS = 1 << 21
_LOOKED_AT = 1 << 14
"""Characters of a text that an excerpt is taken from: the longest key has a third of them."""
BUDGET_SECONDS = 30.0
"""Processor time for one document: ten times what the slowest of 3 MiB was seen to take."""

Kept = tuple[int, Document, str]
"""Split, document and clean text."""


@dataclass(frozen=True)
class PrepareSettings:
    """The spec with its defaults filled in."""

    vocabulary_size: int
    threshold: float
    validation_fraction: float
    keep_personal_data: bool
    minimum_characters: int
    shard_tokens: int
    seed: int

    @classmethod
    def of(cls, spec: job_pb2.PrepareSpec) -> PrepareSettings:
        """Read a spec; what was left out has its default."""
        return cls(
            vocabulary_size=given(spec, "vocabulary_size"),
            threshold=given(spec, "near_duplicate_threshold"),
            validation_fraction=given(spec, "validation_fraction"),
            keep_personal_data=spec.keep_personal_data,
            minimum_characters=given(spec, "minimum_characters"),
            shard_tokens=given(spec, "shard_tokens"),
            seed=given(spec, "seed"),
        )


@dataclass
class Decisions:
    """What the first pass found.

    Attributes:
        splits: of every document.
        redactions: personal data replaced in the documents that stay, by kind.
        steps: the account of every step, in order.
        scripts: documents read and kept by their main script.
    """

    splits: array[int] = field(default_factory=lambda: array("B"))
    redactions: Counter[str] = field(default_factory=Counter)
    steps: list[PrepareStep] = field(default_factory=list)
    scripts: dict[str, Counter[str]] = field(default_factory=dict)


def run(context: Context) -> None:
    """Prepare the datasets of a `PrepareSpec` into the outputs `dataset` and `tokenizer`.

    Raises:
        InvalidInput: nothing is left, or the text is too small for the vocabulary.
        Tampered: an input is not intact.
    """
    settings = PrepareSettings.of(context.spec)
    corpus = Corpus([context.input(name) for name in context.spec.datasets])
    decisions = decide(context, corpus, settings)
    kept = sum(split != DROPPED for split in decisions.splits)
    if TRAIN not in decisions.splits:
        raise InvalidInput(
            "no document is left to train on: loosen --minimum-characters or the near-duplicate"
            " threshold, or add text; the reasons: "
            + json.dumps(dropped_by_reason(decisions.steps))
        )
    texts = (
        text
        for split, _, text in kept_texts(context, corpus, decisions, settings, "learning")
        if split == TRAIN
    )
    tokenizer = vocabulary.train(texts, settings.vocabulary_size)
    dataset = context.output("dataset")
    tokens = write_tokens(context, corpus, decisions, settings, tokenizer, dataset)
    report = {
        "documents": len(decisions.splits),
        "kept": kept,
        "tokens": tokens,
        "steps": [step.as_json() for step in decisions.steps],
        "redactions": dict(decisions.redactions),
        "scripts": decisions.scripts,
        "vocabulary_size": settings.vocabulary_size,
    }
    dataset.write_json("report.json", report)
    _write_tokenizer(dataset, tokenizer)
    sizes = {"vocabulary_size": settings.vocabulary_size}
    dataset.finish(
        {
            "kind": "tokens",
            "documents": kept,
            "tokens": tokens,
            "tokenizer": context.spec.output_tokenizer,
            **sizes,
        }
    )
    output = context.output("tokenizer")
    _write_tokenizer(output, tokenizer)
    output.finish(sizes)
    context.report.result(
        {"documents": len(decisions.splits), "kept": kept, "tokens": tokens, **sizes},
        dropped_by_reason(decisions.steps),
    )


def decide(context: Context, corpus: Corpus, settings: PrepareSettings) -> Decisions:
    """First pass: take every document through the steps, in order, until one drops it."""
    judge = Judge(settings, lambda number: corpus[number].text)
    for document in corpus:
        _progress(context, document.number, "deciding")
        judge.decide(document)
    return judge.decisions


class _Dropped(Exception):
    """A document ends here."""

    def __init__(self, step: PrepareStep, reason: str) -> None:
        self.step = step
        self.reason = reason


class Judge:
    """The steps, and what they remember of earlier documents.

    Args:
        settings: of the job.
        text_of: returns the text of an earlier document by its number.
    """

    def __init__(self, settings: PrepareSettings, text_of: Callable[[int], str]) -> None:
        self._settings = settings
        self._normalizing = PrepareStep("normalize")
        self._personal = PrepareStep("personal_data")
        self._quality = PrepareStep("quality")
        self._exact = PrepareStep("exact_duplicates")
        self._near = PrepareStep("near_duplicates")
        self.decisions = Decisions(
            steps=[self._normalizing, self._personal, self._quality, self._exact, self._near]
        )
        self._repeated = ExactDuplicates()
        self._similar = NearDuplicates(
            settings.threshold, lambda number: _words(normalize(text_of(number)))
        )
        self._until = 0.0

    def decide(self, document: Document) -> None:
        """Note the split of the next document, and what each step did with it."""
        try:
            self._take(document)
        except _Dropped as end:
            end.step.drop(end.reason, document.id, _excerpt(document.text))
            self.decisions.splits.append(DROPPED)
        else:
            self.decisions.splits.append(split_of(document.id, self._settings))

    def _take(self, document: Document) -> None:
        """Take a document through the steps. Raises _Dropped."""
        self._until = time.thread_time() + BUDGET_SECONDS
        text = normalize(document.text)
        writing = writing_of(text)
        count = self.decisions.scripts.setdefault(writing.main, Counter(documents=0, kept=0))
        count["documents"] += 1
        if not text:
            raise _Dropped(self._normalizing, "empty")
        self._done(self._normalizing, changed=text != document.text)
        clean, found = text, Counter[str]()
        if not self._settings.keep_personal_data:
            redaction = redact(text, self._until)
            if redaction.fault:
                raise _Dropped(self._personal, redaction.fault)
            found = redaction.found
            clean = redaction.text if found else text
        self._done(self._personal, changed=bool(found))
        words = words_of(clean, writing)
        if reason := fault(clean, words, writing, self._settings.minimum_characters):
            raise _Dropped(self._quality, reason)
        self._done(self._quality)
        if self._repeated.is_repeated(text):
            raise _Dropped(self._exact, "exact_duplicate")
        self._done(self._exact)
        # As an earlier text is read when it is compared: before personal data was replaced.
        if clean is not text:
            words = words_of(text, writing)
        compared = self._similar.compare(words)
        if compared.original is not None:
            raise _Dropped(self._near, "near_duplicate")
        self._done(self._near)
        # Last, so that no document is dropped for the sake of one that took too long.
        self._repeated.remember(text)
        self._similar.remember(document.number, compared)
        count["kept"] += 1
        self.decisions.redactions.update(found)

    def _done(self, step: PrepareStep, *, changed: bool = False) -> None:
        """A step is done with a document. Raises _Dropped when that has taken too long so far."""
        if time.thread_time() > self._until:
            raise _Dropped(step, TOO_SLOW)
        step.keep(changed=changed)


def _excerpt(text: str) -> str:
    """The beginning of a text without personal data, nor half of any at its end."""
    if len(text) <= _LOOKED_AT:
        return redact(normalize(text)).text[:EXCERPT]
    # What was cut in two is among the last of it, and may not be known for what it is.
    return redact(normalize(text[:_LOOKED_AT])).text[: -_LOOKED_AT // 2][:EXCERPT]


def _words(text: str) -> list[str]:
    return words_of(text, writing_of(text))


def split_of(document_id: str, settings: PrepareSettings) -> int:
    """The split of a document: a pure function of its id and the seed, whatever else there is."""
    digest = hashlib.sha256(f"{settings.seed}:{document_id}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return VALIDATION if place < settings.validation_fraction else TRAIN


def kept_texts(
    context: Context, corpus: Corpus, decisions: Decisions, settings: PrepareSettings, what: str
) -> Iterator[Kept]:
    """A later pass: split, document and clean text of every document that stays."""
    for document in corpus:
        _progress(context, document.number, what, len(decisions.splits))
        split = decisions.splits[document.number]
        if split != DROPPED:
            text = normalize(document.text)
            yield split, document, text if settings.keep_personal_data else redact(text).text
    context.report.progress(len(decisions.splits), len(decisions.splits), what)


def write_tokens(  # noqa: PLR0913 - the last pass needs what all others made
    context: Context,
    corpus: Corpus,
    decisions: Decisions,
    settings: PrepareSettings,
    tokenizer: Tokenizer,
    dataset: ArtifactWriter,
) -> int:
    """Third pass: tokens into shards, held-out text into `validation.jsonl`; return the tokens."""
    dtype = dtype_for(settings.vocabulary_size)
    with (
        dataset.create("validation.jsonl") as held_out,
        ShardWriter(dataset, "train", dtype, settings.shard_tokens) as train,
        ShardWriter(dataset, "validation", dtype, settings.shard_tokens) as validation,
    ):
        for batch in _batches(kept_texts(context, corpus, decisions, settings, "writing tokens")):
            encoded = tokenizer.encode_batch_fast([text for _, _, text in batch])
            for (split, document, text), encoding in zip(batch, encoded, strict=True):
                writer = train if split == TRAIN else validation
                writer.write([*encoding.ids, vocabulary.END_OF_TEXT_ID])
                if split == VALIDATION:
                    line = json.dumps({"id": document.id, "text": text}, ensure_ascii=False)
                    held_out.write(line.encode() + b"\n")
    index = {
        "format": "tokens",
        "dtype": "uint16" if dtype.itemsize == 2 else "uint32",
        "vocabulary_size": settings.vocabulary_size,
        "end_of_text": vocabulary.END_OF_TEXT_ID,
        "tokens": {writer.split: writer.tokens for writer in (train, validation)},
        "shards": train.shards + validation.shards,
    }
    dataset.write_json("index.json", index)
    return train.tokens + validation.tokens


def _batches(kept: Iterator[Kept]) -> Iterator[list[Kept]]:
    """Documents that are tokenized together: not too many, and not too long."""
    batch: list[Kept] = []
    characters = 0
    for entry in kept:
        characters += len(entry[2])
        if batch and (len(batch) == _BATCH or characters > _BATCH_CHARACTERS):
            yield batch
            batch, characters = [], len(entry[2])
        batch.append(entry)
    yield batch


def _write_tokenizer(output: ArtifactWriter, tokenizer: Tokenizer) -> None:
    with output.create("tokenizer.json") as file:
        file.write(tokenizer.to_str().encode())
    output.write_json("tokenizer_config.json", vocabulary.hugging_face_config())


def _progress(context: Context, number: int, what: str, total: int = 0) -> None:
    if number % _EVERY == 0:
        context.fence()
        context.report.progress(number, total, what)
