"""Says how large the packages of a lock are, without fetching one.

    python ansible/wheel_sizes.py --python 3.13 deploy/locks/3.13/node-gpu.txt

Asks the package index that pip uses for the files of each package (PEP 691; sizes are PEP 700), and
takes the one that pip would: of a locked hash, and the best of those that fit the Python and an
x86-64 Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

TIMEOUT = 60.0
AT_ONCE = 16
MAX_SHOWN = 15
_PLATFORMS = [
    *(f"manylinux_2_{minor}_x86_64" for minor in range(41, 4, -1)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"),
]
_LINE = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)")


def locked(lock: Path) -> Iterator[tuple[str, str, set[str]]]:
    """Name, version and SHA-256 hashes of every package of a lock."""
    for entry in lock.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if found := _LINE.match(entry):
            yield found[1], found[2], set(re.findall(r"sha256:([0-9a-f]{64})", entry))


def tags_of(python: str) -> dict[Tag, int]:
    """The tags of wheels that fit a Python `X.Y`, the best first."""
    version = tuple(map(int, python.split(".")))
    tags = [*cpython_tags(version, platforms=_PLATFORMS)]
    tags += compatible_tags(
        version, interpreter=f"cp{version[0]}{version[1]}", platforms=_PLATFORMS
    )
    return {tag: number for number, tag in enumerate(tags)}


def chosen(files: list[dict[str, Any]], hashes: set[str], tags: dict[Tag, int]) -> Any | None:
    """The file that pip would take of those an index has; None when none fits."""
    fitting = []
    for file in files:
        if file.get("hashes", {}).get("sha256") not in hashes:
            continue
        try:
            _, _, build, its = parse_wheel_filename(file["filename"])
        except InvalidWheelFilename:
            continue
        places = [tags[tag] for tag in its if tag in tags]
        if places:
            fitting.append((min(places), tuple(-n for n in build[:1]), file["filename"], file))
    return min(fitting, key=lambda each: each[:3])[3] if fitting else None


def index_url() -> str:
    """The index that pip is set up to use."""
    if url := os.environ.get("PIP_INDEX_URL"):
        return url
    asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    if found:
        return found
    from pip._internal.models.index import PyPI  # noqa: PLC0415 - the one that pip has built in

    return str(PyPI.simple_url)


def files_of(index: str, name: str) -> list[dict[str, Any]]:
    """The files that an index has of a package."""
    plain = re.sub(r"[-_.]+", "-", name).lower()
    request = urllib.request.Request(  # noqa: S310 - the address is pip's own
        f"{index.rstrip('/')}/{plain}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
        files: list[dict[str, Any]] = json.load(answer)["files"]
    return files


def main() -> int:
    """Print the sizes; 1 when a package does not fit."""
    parser = argparse.ArgumentParser(description="How large the packages of a lock are.")
    parser.add_argument("--python", required=True, help="of the servers, such as 3.13")
    parser.add_argument("lock", type=Path)
    options = parser.parse_args()
    packages, tags, index = list(locked(options.lock)), tags_of(options.python), index_url()
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = list(pool.map(lambda package: files_of(index, package[0]), packages))
    except (urllib.error.URLError, ValueError, KeyError) as error:
        print(f"the package index does not list its files: {error}", file=sys.stderr)
        return 1
    sizes: list[tuple[int, str]] = []
    missing = []
    for (name, version, hashes), files in zip(packages, found, strict=True):
        file = chosen(files, hashes, tags) or _in_a_folder(name, version)
        if file is None:
            missing.append(f"{name}=={version}")
        else:
            sizes.append((int(file.get("size") or 0), f"{name}=={version}"))
    print(f"{options.lock}: {len(sizes)} packages, {_readable(sum(size for size, _ in sizes))}")
    for size, name in sorted(sizes, reverse=True)[:MAX_SHOWN]:
        print(f"  {_readable(size):>10}  {name}")
    rest = sorted(sizes, reverse=True)[MAX_SHOWN:]
    if rest:
        print(f"  {_readable(sum(size for size, _ in rest)):>10}  {len(rest)} others")
    for name in missing:
        print(f"  not in the index for Python {options.python}: {name}")
    return int(bool(missing))


def _in_a_folder(name: str, version: str) -> dict[str, Any] | None:
    """A wheel in one of the folders that are named to pip (PIP_FIND_LINKS)."""
    for folder in os.environ.get("PIP_FIND_LINKS", "").split():
        for path in Path(folder).glob(f"{name.replace('-', '_')}-{version}-*.whl"):
            return {"size": path.stat().st_size}
    return None


def _readable(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
