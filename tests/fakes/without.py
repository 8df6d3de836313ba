"""A Python that lacks packages which are installed, or whose packages are broken."""

import os
import sys
from pathlib import Path

from tests.fakes.gang import ROOT

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


def virtual_environment(folder: Path, *missing: str, broken: str = "") -> Path:
    """A Python of its own that imports what this one does, but these modules; its program.

    Args:
        folder: to make it in.
        missing: modules that are not there.
        broken: a module that is there, and cannot be imported.
    """
    base = Path(os.path.realpath(sys.executable))
    packages = folder / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    packages.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin/python").symlink_to(base)
    (folder / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join([str(ROOT), *others]) + "\n")
    (packages / "sitecustomize.py").write_text(_CUSTOM.format(missing=missing))
    if broken:
        error = "OSError('libcudart.so.13: cannot open shared object file')"
        (packages / f"{broken}.py").write_text(f"raise {error}\n")
    return folder / "bin/python"
