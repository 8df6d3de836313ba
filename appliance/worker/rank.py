"""vLLM's CPU worker, bound to its rank's cores.

vLLM binds a rank by OpenMP variables that libgomp reads when it is loaded. A forked process has it
loaded already, so the binding has to be done by hand, before the rank has any thread. Named to vLLM
by `appliance.worker.engine`; constructed by vLLM in each rank's process.
"""

from __future__ import annotations

import os
from typing import Any

from vllm import envs
from vllm.v1.worker.cpu_worker import CPUWorker


class BoundWorker(CPUWorker):  # type: ignore[misc]  # vLLM has no types that mypy follows
    """A CPU worker on the cores that `VLLM_CPU_OMP_THREADS_BIND` gives its rank."""

    def __init__(self, vllm_config: Any, local_rank: int, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # vLLM's own signature
        cores = envs.VLLM_CPU_OMP_THREADS_BIND.split("|")[local_rank]
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
        super().__init__(vllm_config, local_rank, *args, **kwargs)
