"""What work needs of the Python of its node, and what to say of one that lacks it.

A table: kind of work -> modules that it imports and the agent, which starts it, does not. A test
compares it with the imports in the code.

Called by the agent (which looks for them), by placement and by the leader of a job.
"""

from __future__ import annotations

from collections.abc import Mapping

from appliance.core.errors import FailedPrecondition

REPLICA = "replica"
"""The kind of work that is no job: one replica of an endpoint."""

NEEDS: Mapping[str, frozenset[str]] = {
    "prepare": frozenset({"fsspec", "numpy", "re2", "rensa", "rfc8785", "tokenizers", "torch"}),
    "train": frozenset({"fsspec", "numpy", "rfc8785", "tokenizers", "torch", "transformers"}),
    "quantize": frozenset({"compressed_tensors", "fsspec", "rfc8785", "torch", "transformers"}),
    "evaluate": frozenset({"fsspec", "rfc8785", "tokenizers", "torch", "transformers"}),
    REPLICA: frozenset({"fsspec", "rfc8785", "torch", "uvloop", "vllm"}),
}

REPAIR = "install the extra node-cpu or node-gpu, then start the node's agent again"
LONGEST_SENTENCE = 500
"""Characters of what a node says that it lacks."""

_PACKAGES = {"re2": "google-re2"}


def lacking(missing: Mapping[str, str]) -> dict[str, str]:
    """What a node lacks for each kind of work, for a person; "" where it lacks nothing. Pure.

    Args:
        missing: module -> why it cannot be imported, "" when it is not installed.
    """
    return {
        kind: _sentence(sorted(needs & missing.keys()), missing)[:LONGEST_SENTENCE]
        for kind, needs in NEEDS.items()
    }


def unimportable(error: ImportError | OSError) -> FailedPrecondition:
    """What an import that failed means: a package is not there, or one of its libraries."""
    name = (error.name if isinstance(error, ImportError) else None) or "a package"
    return FailedPrecondition(f"{_package(name)} cannot be imported on the node: {REPAIR}")


def _sentence(modules: list[str], missing: Mapping[str, str]) -> str:
    absent = [_package(module) for module in modules if not missing[module]]
    if absent:
        *others, last = absent
        names = f"{', '.join(others)} and {last} are" if others else f"{last} is"
        return f"{names} not installed: {REPAIR}"
    broken = [f"{_package(module)} cannot be imported ({missing[module]})" for module in modules]
    return f"{', '.join(broken)}: {REPAIR}" if broken else ""


def _package(module: str) -> str:
    top = module.partition(".")[0]
    return _PACKAGES.get(top, top.replace("_", "-"))
