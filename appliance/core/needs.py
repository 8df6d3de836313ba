"""What work needs of the Python of its node, and what to say of one that lacks it.

Which modules a kind of job imports, and the agent, which starts it, does not, the kind says
(`appliance.kinds`); those of a replica stand here. A test compares them with the imports in the
code.

Called by the agent (which looks for them), by placement and by the leader of a job.
"""

from __future__ import annotations

from collections.abc import Mapping

from appliance.core.errors import FailedPrecondition

REPLICA = "replica"
"""The kind of work that is no job: one replica of an endpoint."""

REPLICA_MODULES = frozenset({"fsspec", "rfc8785", "torch", "uvloop", "vllm"})

REPAIR = "install the extra node-cpu or node-gpu, then start the node's agent again"
MAX_SENTENCE = 500
"""Characters of what a node says that it lacks."""

_PACKAGES = {"re2": "google-re2"}


def lacking(needs: Mapping[str, frozenset[str]], missing: Mapping[str, str]) -> dict[str, str]:
    """What a node lacks for each kind of work, for a person; "" where it lacks nothing. Pure.

    Args:
        needs: kind of work -> modules.
        missing: module -> why it cannot be imported, "" when it is not installed.
    """
    return {
        kind: _sentence(sorted(modules & missing.keys()), missing)[:MAX_SENTENCE]
        for kind, modules in needs.items()
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
