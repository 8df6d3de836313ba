"""Fail when `appliance/api` is not what `proto/` generates today.

The generated code is committed, so that a reader and an installation need no compiler; this check
keeps it honest. Called by `make check`.
"""

import filecmp
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Generate into a scratch folder and compare file by file; 1 when they differ."""
    protos = sorted(str(path) for path in (ROOT / "proto").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        outputs = [f"--{kind}_out={scratch}" for kind in ("python", "pyi", "grpc_python")]
        includes = [f"-I{ROOT / 'proto'}", f"-I{files('grpc_tools') / '_proto'}"]
        if protoc.main(["protoc", *includes, *outputs, *protos]) != 0:
            return 1
        fresh = _generated(Path(scratch) / "appliance/api")
        committed = _generated(ROOT / "appliance/api")
        stale = sorted(
            set(fresh) ^ set(committed)
            | {
                name
                for name in set(fresh) & set(committed)
                if not filecmp.cmp(fresh[name], committed[name], shallow=False)
            }
        )
    for name in stale:
        sys.stderr.write(f"appliance/api/{name} is stale: run `make proto` and commit the result\n")
    return 1 if stale else 0


def _generated(folder: Path) -> dict[str, Path]:
    return {
        str(path.relative_to(folder)): path
        for path in folder.rglob("*_pb2*.py*")
        if "__pycache__" not in path.parts
    }


if __name__ == "__main__":
    sys.exit(main())
