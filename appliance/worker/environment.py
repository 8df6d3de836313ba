"""The surroundings of an engine: its cores or GPUs, and the variables its libraries read.

Rules kept here:
* the variables are complete before torch or vLLM is imported: libgomp reads its own when it is
  loaded, vLLM when it is imported;
* nothing reaches for the network: no model hub, no usage statistics, every socket on loopback;
* temporary files and caches go to the private folder in memory;
* nothing secret is in a variable.

On CPUs a device is a core; ranks get theirs in order and do not share one, because OpenMP threads
that share a core slow each other down a hundredfold. Called by `appliance.worker.main`; pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PLUGIN = "appliance_sealed_loader"
"""Name of the loader's entry point: the only vLLM plugin that is loaded."""


def cores_of_ranks(
    devices: Sequence[int], ranks: int, cores: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """Cores of each rank.

    Args:
        devices: device indices of the orders, a multiple of `ranks`; index i is the i-th core, and
            goes round when there are fewer cores.
        ranks: tensor-parallel ranks.
        cores: what this process may run on, at least one.
    """
    chosen = [cores[device % len(cores)] for device in devices]
    each = len(chosen) // ranks
    return tuple(
        tuple(sorted(set(chosen[rank * each : (rank + 1) * each]))) for rank in range(ranks)
    )


def _quiet(private: Path) -> dict[str, str]:
    folder = str(private)
    return {
        "DO_NOT_TRACK": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HOME": folder,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "NCCL_SOCKET_IFNAME": "lo",
        "TMPDIR": folder,
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHINDUCTOR_CACHE_DIR": folder,
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_CACHE_ROOT": folder,
        "VLLM_CONFIG_ROOT": folder,
        "VLLM_CONFIGURE_LOGGING": "0",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PLUGINS": PLUGIN,
        "VLLM_RPC_BASE_PATH": folder,
    }


def on_cpus(ranks: Sequence[Sequence[int]], private: Path) -> dict[str, str]:
    """Variables of an engine on CPUs.

    Args:
        ranks: cores of each rank, as `cores_of_ranks` gives them.
        private: folder in memory that only this process uses.
    """
    return {
        **_quiet(private),
        # libgomp is loaded once, before the fork, so all ranks have the largest rank's threads.
        "OMP_NUM_THREADS": str(max(len(cores) for cores in ranks)),
        # Idle OpenMP threads that spin take the core away from the engine's scheduler.
        "GOMP_SPINCOUNT": "0",
        # vLLM runs eagerly on CPUs, but some functions would still be compiled: seconds of g++ in
        # the first step of every start, on servers that need no compiler.
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, cores)) for cores in ranks),
    }


def on_gpus(devices: Sequence[int], private: Path) -> dict[str, str]:
    """Variables of an engine on GPUs."""
    return {
        **_quiet(private),
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, devices)),
        "OMP_NUM_THREADS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "fork",
    }
