"""What a server has to offer: GPUs, or process slots on its CPUs, and memory.

Called once by the composition root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from appliance.core.errors import FailedPrecondition
from appliance.node.config import Devices

CPU = "cpu"
CUDA = "cuda"
QUERY_SECONDS = 30
_SHARE_OF_MEMORY = 0.8


@dataclass(frozen=True)
class Offer:
    """Devices of one kind, memory in bytes, CPU threads for each rank."""

    kind: str
    devices: int
    memory_bytes: int
    threads: int


def offer(wanted: Devices, *, gpus: int, cores: int, memory_bytes: int) -> Offer:
    """What to offer of what there is. Pure.

    Raises FailedPrecondition when more is wanted than there is (CPU slots may exceed cores).
    """
    kind = wanted.kind if wanted.kind != "auto" else (CUDA if gpus else CPU)
    if kind == CUDA and gpus < max(wanted.count, 1):
        raise FailedPrecondition(
            f"devices.count is {wanted.count}, but this server shows {gpus} GPUs: check the driver"
            " with nvidia-smi"
        )
    devices = wanted.count or (gpus if kind == CUDA else cores)
    return Offer(
        kind=kind,
        devices=devices,
        memory_bytes=wanted.memory_bytes or int(memory_bytes * _SHARE_OF_MEMORY),
        threads=wanted.threads or max(1, cores // devices),
    )


def count_gpus() -> int:
    """GPUs the driver shows; 0 without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        found = subprocess.run(
            [program, "--list-gpus"],
            capture_output=True,
            check=False,
            text=True,
            timeout=QUERY_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return 0
    return sum(line.startswith("GPU ") for line in found.stdout.splitlines())


def count_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def total_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Memory of the server in bytes (proc(5), `MemTotal`)."""
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) << 10
    raise FailedPrecondition(
        f"{meminfo} does not say how much memory there is: set devices.memory_bytes"
    )
