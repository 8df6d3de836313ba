"""Loads the function that runs a kind of job.

Which one that is, the kind says (`appliance.kinds`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from appliance.core.errors import InvalidInput
from appliance.core.needs import unimportable

if TYPE_CHECKING:
    from appliance.jobs.runtime.context import Context

Run = Callable[["Context"], None]


def load(kind: str, kinds: Mapping[str, str]) -> Run:
    """The function of a kind; `kinds`: kind -> `module:function`.

    Raises InvalidInput when this node does not know it, FailedPrecondition when it lacks a package.
    """
    if kind not in kinds:
        raise InvalidInput(f"this node cannot run jobs of kind {kind[:40]}: update its software")
    module, _, function = kinds[kind].partition(":")
    try:
        found = importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise unimportable(error) from error
    run: Run = getattr(found, function)
    return run
