"""What is in the log of a run, without the heads of its lines."""

from __future__ import annotations

import re
from pathlib import Path

HEAD = re.compile(r"^\d+ \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z (-|\d+) ", re.MULTILINE)


def text_of(path: Path) -> str:
    """The text of a log file; of a line that never ends the pieces, each a line."""
    return HEAD.sub("", path.read_text())
