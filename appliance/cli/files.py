"""Files that commands write for a person."""

from __future__ import annotations

from pathlib import Path

from appliance.core.files import write_durably


def write_secret(path: Path, text: str) -> None:
    """Write a secret, readable by its owner alone, whole or not at all."""
    write_durably(path.absolute(), text.encode() + b"\n")


def write_public(path: Path, data: bytes) -> None:
    """Write what everybody may read, whole or not at all."""
    write_durably(path.absolute(), data, mode=0o644)
