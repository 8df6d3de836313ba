"""The kinds of jobs: everything that is known of each before it runs.

`KINDS` is the one list of them. What is known of a kind stands in the module of its name
(`appliance.kinds.train`), and that is loaded when it is asked for: the command prints its help
without protobuf. How to add one: `docs/how-to/add-a-job-kind.md`.

Pure. Called by the control plane (accept, place), by agents (what work needs of their Python), by
ranks (settings, and which function runs) and by the command (options, help, dry run).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from appliance.core.needs import REPLICA, REPLICA_MODULES

if TYPE_CHECKING:
    from appliance.kinds.kind import Kind

KINDS: Mapping[str, str] = {
    "prepare": "Clean text and turn it into tokens.",
    "train": "Train a model from scratch, or on from a checkpoint.",
    "quantize": "Make a smaller version of a model.",
    "evaluate": "Measure the perplexity of a model on held-out text.",
}
"""Every kind, the member of the oneof `spec` of a job, and its line in the help."""


@functools.cache
def kind_of(name: str) -> Kind:
    """What is known of a kind. Raises KeyError for one that is not in `KINDS`."""
    if name not in KINDS:
        raise KeyError(name)
    found: Kind = importlib.import_module(f"appliance.kinds.{name}").KIND
    return found


def functions() -> dict[str, str]:
    """Kind -> the function that runs in its ranks, `module:function`."""
    return {name: kind_of(name).run for name in KINDS}


def needs() -> dict[str, frozenset[str]]:
    """Kind of work -> Python modules that it imports, and the agent, which starts it, does not."""
    return {name: kind_of(name).modules for name in KINDS} | {REPLICA: REPLICA_MODULES}
