"""What a node can run, asked of real child processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from appliance.core.needs import REPAIR
from appliance.node.abilities import Abilities, capabilities
from appliance.node.importing import NICENESS
from tests.fakes.gang import ROOT
from tests.fakes.without import without

BROKEN = {
    "good.py": f"import os, sys\nprint('[1, 2]')\nassert os.nice(0) >= {NICENESS}, os.nice(0)",
    "raises.py": "raise OSError('libcudart.so.13: cannot open shared object file')",
    "leaves.py": "import os\nos._exit(0)",
    "illegal.py": "import os, signal\nos.kill(os.getpid(), signal.SIGILL)",
    "hangs.py": "import threading\nthreading.Event().wait()",
    "exits.py": "import sys\nsys.exit(3)",
}


def able(folder: Path, *first: Path, seconds: float = 60) -> Abilities:
    path = os.pathsep.join(map(str, (*first, ROOT)))
    command = (sys.executable, "-m", "appliance.node.importing")
    return Abilities({"PYTHONPATH": path}, folder, command, seconds)


async def test_what_is_not_there_is_found_without_importing(tmp_path: Path) -> None:
    first = without(tmp_path / "first", "torch", "vllm")
    (first / "raises.py").write_text(BROKEN["raises.py"])
    modules = ["json", "raises", "nowhere_at_all", "torch", "vllm"]
    found = await able(tmp_path, first).find(modules)
    assert found == {"nowhere_at_all": "", "torch": "", "vllm": ""}


async def test_what_is_there_is_really_imported(tmp_path: Path) -> None:
    for name, text in BROKEN.items():
        (tmp_path / name).write_text(text)
    order = ["raises", "illegal", "exits", "leaves", "good", "json"]
    assert await able(tmp_path, tmp_path).check(order) == {
        "raises": "OSError",
        "illegal": "its process was killed by SIGILL",
        "exits": "SystemExit",
        "leaves": "its process ended with code 0",
    }


async def test_an_import_that_never_ends_is_given_up(tmp_path: Path) -> None:
    for name, text in BROKEN.items():
        (tmp_path / name).write_text(text)
    found = await able(tmp_path, tmp_path, seconds=2).check(["good", "hangs", "raises"])
    assert found == {"hangs": "it took longer than 2 s", "raises": "OSError"}


@pytest.mark.parametrize("command", [("/nowhere/python",), (sys.executable, "-c", "print('{')")])
async def test_what_cannot_be_found_out_is_left_open(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    unknown = Abilities({}, tmp_path, command)
    assert await unknown.find() is None
    assert await unknown.check(["torch"]) == {}


def test_capabilities_say_what_each_kind_lacks() -> None:
    said = {each.kind: each for each in capabilities({"vllm": "", "re2": "OSError"})}
    assert sorted(said) == ["evaluate", "prepare", "quantize", "replica", "train"]
    assert [kind for kind, each in said.items() if each.available] == [
        "evaluate",
        "quantize",
        "train",
    ]
    assert said["train"].reason == ""
    assert said["replica"].reason == f"vllm is not installed: {REPAIR}"
    assert said["prepare"].reason == f"google-re2 cannot be imported (OSError): {REPAIR}"
