"""A Python that lacks packages which are installed: a folder for its `PYTHONPATH`."""

from pathlib import Path

_CUSTOM = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def without(folder: Path, *modules: str) -> Path:
    """Fill a folder so that a Python which finds it first cannot import these modules."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_CUSTOM.format(missing=modules))
    return folder
