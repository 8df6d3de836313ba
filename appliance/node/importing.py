"""`python -m appliance.node.importing`: which modules a Python has, and which it can import.

A process of its own, because importing torch takes seconds and hundreds of megabytes, and because
one whose libraries do not fit the processor kills whoever imports it.

Says JSON lines of [module, trouble, detail] on standard output. `import` says of each module null
before it is imported, and afterwards "" or the class and the text of what went wrong; `find` says
"", or null for one that is not there, and imports nothing. Started by `appliance.node.abilities`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence

from appliance.core.process import die_with_parent

NICENESS = 10
MAX_DETAIL = 500


def main(arguments: Sequence[str]) -> None:
    """Look for, or import, the modules named after `find` or `import`."""
    die_with_parent(os.getppid())
    os.nice(NICENESS)
    what, *modules = arguments
    answers = os.dup(1)
    # What modules print as they are imported is no answer of ours.
    os.dup2(2, 1)
    for module in modules:
        if what == "find":
            _say(answers, module, "" if _is_there(module) else None)
        else:
            _say(answers, module, None)
            _say(answers, module, *_import(module))


def _import(module: str) -> tuple[str, str]:
    try:
        importlib.import_module(module)
    except BaseException as error:  # noqa: BLE001  # whatever it is, a job would meet it too
        return type(error).__name__[:80], str(error)[:MAX_DETAIL]
    return "", ""


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _say(descriptor: int, module: str, trouble: str | None, detail: str = "") -> None:
    os.write(descriptor, json.dumps([module, trouble, detail]).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
