"""What the versions of datasets, tokenizers, models and reports can hold.

An artifact kind says what is inside; several may be versions of one resource: a version of a
dataset holds text, tokens or pairs. Checkpoints are none: they are resources of their job. Jobs say
in these words what they read and what they make, and the slot of an output is another word: one job
may make two models.

Pure. Called by the control plane, which allocates and registers versions, and by the kinds of jobs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TEXT = "text"
TOKENS = "tokens"
PAIRS = "pairs"
TOKENIZER = "tokenizer"
MODEL = "model"
ADAPTER = "adapter"
REPORT = "report"


@dataclass(frozen=True)
class ArtifactKind:
    """Where artifacts of one kind are kept, and who may use them.

    Attributes:
        resource: the resource whose versions hold them, a key of `core.names.PATTERNS`.
        read: permission to read one.
        make: permission to make one.
        once: whether a resource has one version for ever, and so must not exist before.
    """

    resource: str
    read: str
    make: str
    once: bool = False


_TEXTUAL = ArtifactKind("dataset", "datasets.get", "datasets.upload")
_WEIGHTS = ArtifactKind("model", "models.get", "models.import")

ARTIFACT_KINDS: Mapping[str, ArtifactKind] = {
    TEXT: _TEXTUAL,
    TOKENS: _TEXTUAL,
    PAIRS: _TEXTUAL,
    TOKENIZER: ArtifactKind("tokenizer", "datasets.get", "datasets.upload", once=True),
    MODEL: _WEIGHTS,
    ADAPTER: _WEIGHTS,
    REPORT: ArtifactKind("report", "reports.get", "jobs.create", once=True),
}

ONCE = frozenset(kind.resource for kind in ARTIFACT_KINDS.values() if kind.once)
"""Resources that have one version for ever."""


def kind_of(resource: str, facts: Mapping[str, Any]) -> str:
    """The artifact kind of a version: what its facts say, else the only one of its resource.

    Args:
        resource: whose version it is, such as `dataset`.
        facts: of the version.
    """
    return str(facts.get("kind") or resource)
