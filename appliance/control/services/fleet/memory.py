"""How much memory a replica needs, estimated before it starts. Pure.

Estimates are a little too high rather than too low: they decide where work may run. Bytes
throughout. Those of jobs are in `appliance.kinds`.

Called by `services.serving.replica_rows`.
"""

from __future__ import annotations

from appliance.core.numbers import GIB

ENGINE_PROCESS = 3 * GIB // 2
"""An inference engine of one device: its processes without weights and cache."""


def replica_device(weights: int, tensor_parallel: int, cache: int) -> int:
    """Memory of a replica on each of its devices: a part of the weights, the cache, the engine."""
    return ENGINE_PROCESS + weights // tensor_parallel + cache
