"""What a process does to itself, looked at from inside and from outside."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOOK = """
import ctypes, resource, sys
from appliance.core import process
getattr(process, sys.argv[1])()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE))
"""


@pytest.mark.attack
@pytest.mark.parametrize(("does", "dumpable"), [("harden", "0"), ("leave_no_core", "1")])
def test_no_core_file_is_left(does: str, dumpable: str) -> None:
    """The command stays dumpable, or it could not open `/dev/stdin` and `<(...)`."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, does], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{dumpable} 0 0\n"
