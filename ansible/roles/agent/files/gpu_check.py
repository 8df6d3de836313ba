#!/usr/bin/env python3
"""Says what a server lacks to run work on its GPUs: a sentence for each thing, and exit code 1.

    gpu_check.py [--user appliance-agent] [--cuda 13.0]

Looks at what the kernel says (PCI bus, driver, device files), at nvidia-smi and at the driver's
library. Installs and changes nothing. Needs no package: it runs before any is installed.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

DRIVERS = {"12.8": (570, 26), "12.9": (575, 51, 3), "13.0": (580, 65, 6)}
"""Least driver for a CUDA toolkit on Linux x86-64 (CUDA Toolkit release notes, table 3)."""
CUDA = "13.0"
"""Of the locked torch."""
NO_GPU = (
    "no NVIDIA GPU is on this server's PCI bus: look at its slots and BIOS, or install it as a CPU "
    "node (common_kind: node-cpu)"
)
_NVIDIA, _DISPLAY = "0x10de", "0x03"
_VERSION = re.compile(r"Kernel Module(?: for x86_64)?\s+(\d+(?:\.\d+)+)")
SECONDS = 60.0


def problems(root: Path, user: str, cuda: str) -> list[str]:
    """What is missing, the first thing first; what depends on a missing thing is not looked at."""
    found = gpus(root)
    if not found:
        return [NO_GPU]
    text = _read(root / "proc/driver/nvidia/version")
    version = _VERSION.search(text)
    if version is None:
        nouveau = (root / "sys/module/nouveau").exists()
        first = "take the nouveau driver off it (blacklist nouveau), " if nouveau else ""
        sentence = (
            f"the NVIDIA driver is not loaded for {len(found)} GPU(s): {first}install the driver "
            f"of your system, {_written(DRIVERS[cuda])} or newer, and start the server anew"
        )
        return [sentence]
    said = []
    if _numbers(version[1]) < DRIVERS[cuda]:
        said.append(
            f"the NVIDIA driver is {version[1]}; CUDA {cuda} needs {_written(DRIVERS[cuda])} or "
            "newer: update it, then start the server anew"
        )
    said += _devices(root, len(found), user)
    return said


def gpus(root: Path) -> list[str]:
    """PCI addresses of NVIDIA's display controllers and accelerators."""
    devices = sorted((root / "sys/bus/pci/devices").glob("*"))
    return [
        device.name
        for device in devices
        if _read(device / "vendor") == _NVIDIA and _read(device / "class").startswith(_DISPLAY)
    ]


def _devices(root: Path, count: int, user: str) -> list[str]:
    names = ["nvidiactl", "nvidia-uvm", *(f"nvidia{number}" for number in range(count))]
    missing = [name for name in names if not (root / "dev" / name).exists()]
    if missing:
        listed = ", ".join(f"/dev/{name}" for name in missing)
        how = "run nvidia-modprobe -u -c 0, or start nvidia-persistenced at boot"
        return [f"device files are missing: {listed}: {how}"]
    closed = [name for name in names if not _may_use(root / "dev" / name, user)]
    if closed:
        listed = ", ".join(f"/dev/{name}" for name in closed)
        how = "give them mode 0666, or add the user to their group"
        return [f"{user} may not use {listed}: {how}"]
    return []


def _may_use(path: Path, user: str) -> bool:
    """Whether a user can read and write a device; one that is not there yet is as anybody."""
    found = path.stat()
    need = stat.S_IROTH | stat.S_IWOTH
    if found.st_mode & need == need:
        return True
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return False
    if found.st_uid == entry.pw_uid and found.st_mode & 0o600 == 0o600:
        return True
    return found.st_gid in os.getgrouplist(user, entry.pw_gid) and found.st_mode & 0o060 == 0o060


def unusable() -> list[str]:
    """What the driver's own program and library say."""
    said = []
    program = shutil.which("nvidia-smi")
    if program is None:
        said.append("nvidia-smi is not installed: install the driver's utilities")
    else:
        asked = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
        try:
            done = subprocess.run(
                asked, capture_output=True, text=True, check=False, timeout=SECONDS
            )
            told, code = (done.stdout + done.stderr).strip().splitlines(), done.returncode
        except subprocess.TimeoutExpired:
            told, code = [f"no answer in {SECONDS:.0f} s"], 1
        if code:
            said.append(
                f"nvidia-smi fails ({told[-1] if told else code}): driver and its utilities are of "
                "two versions, or a GPU has fallen off the bus; see the kernel's log"
            )
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        said.append(
            "libcuda.so.1 is not installed: install the driver's compute library (libcuda1)"
        )
    return said


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def _written(version: tuple[int, ...]) -> str:
    first, *others = version
    return ".".join([str(first), *(f"{number:02}" for number in others)])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def main() -> int:
    """Print what is missing; 1 when something is."""
    parser = argparse.ArgumentParser(description="What a server lacks to run work on its GPUs.")
    parser.add_argument("--user", default="appliance-agent", help="who uses the devices")
    parser.add_argument("--cuda", default=CUDA, choices=sorted(DRIVERS), help="toolkit of torch")
    options = parser.parse_args()
    found = problems(Path("/"), options.user, options.cuda) or unusable()
    for sentence in found:
        print(sentence)
    if not found:
        print(f"{len(gpus(Path('/')))} GPU(s), driver ready for CUDA {options.cuda}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
