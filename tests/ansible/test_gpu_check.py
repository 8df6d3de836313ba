"""What a GPU server lacks is said before anything is installed on it."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOBODY = "nobody"
NEW = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n"
OLD = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"


def load() -> ModuleType:
    path = ROOT / "ansible" / "roles" / "agent" / "files" / "gpu_check.py"
    spec = importlib.util.spec_from_file_location("gpu_check", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gpu_check = load()


def server(
    root: Path, *, gpus: int = 2, driver: str = NEW, devices: int = 2, mode: int = 0o666
) -> Path:
    """A kernel's files as a server with GPUs has them."""
    for number in range(gpus):
        device = root / "sys/bus/pci/devices" / f"0000:0{number}:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x10de\n")
        (device / "class").write_text("0x030200\n")
    network = root / "sys/bus/pci/devices/0000:09:00.0"
    network.mkdir(parents=True)
    (network / "vendor").write_text("0x15b3\n")
    (network / "class").write_text("0x020000\n")
    if driver:
        (root / "proc/driver/nvidia").mkdir(parents=True)
        (root / "proc/driver/nvidia/version").write_text(driver)
    (root / "dev").mkdir()
    for name in ["nvidiactl", "nvidia-uvm", *(f"nvidia{n}" for n in range(devices))]:
        (root / "dev" / name).touch()
        (root / "dev" / name).chmod(mode)
    return root


def said(root: Path, user: str = NOBODY) -> list[str]:
    found: list[str] = gpu_check.problems(root, user, gpu_check.CUDA)
    return found


def test_a_server_that_is_ready_lacks_nothing(tmp_path: Path) -> None:
    assert said(server(tmp_path)) == []


def test_a_server_without_a_gpu(tmp_path: Path) -> None:
    (sentence,) = said(server(tmp_path, gpus=0))
    assert sentence.startswith("no NVIDIA GPU is on this server's PCI bus")


@pytest.mark.parametrize("nouveau", [False, True])
def test_a_driver_that_is_not_loaded(tmp_path: Path, *, nouveau: bool) -> None:
    root = server(tmp_path, driver="")
    if nouveau:
        (root / "sys/module/nouveau").mkdir(parents=True)
    (sentence,) = said(root)
    assert "driver is not loaded for 2 GPU(s)" in sentence
    assert "580.65.06 or newer" in sentence
    assert ("nouveau" in sentence) is nouveau


def test_a_driver_that_is_too_old(tmp_path: Path) -> None:
    (sentence,) = said(server(tmp_path, driver=OLD))
    assert "driver is 535.183.01; CUDA 13.0 needs 580.65.06 or newer" in sentence


def test_device_files_that_are_missing_or_closed(tmp_path: Path) -> None:
    (missing,) = said(server(tmp_path / "a", devices=1))
    assert "device files are missing: /dev/nvidia1:" in missing
    (closed,) = said(server(tmp_path / "b", mode=0o600))
    assert closed.startswith("nobody may not use /dev/nvidiactl, /dev/nvidia-uvm, /dev/nvidia0")
    root = server(tmp_path / "c", mode=0o660)
    assert len(said(root, "nosuchuser")) == 1
    if os.getuid() == 0:
        assert said(root, "root") == []


def test_the_least_driver_is_that_of_the_locked_torch() -> None:
    locks = list((ROOT / "deploy" / "locks").glob("3.*/node-gpu.txt"))
    assert locks
    for lock in locks:
        found = re.search(r"^nvidia-cuda-runtime==(\d+\.\d+)\.", lock.read_text(), re.MULTILINE)
        assert found is not None
        assert found[1] == gpu_check.CUDA
        assert found[1] in gpu_check.DRIVERS
