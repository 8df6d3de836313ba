from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.worker.environment import cores_of_ranks, on_cpus, on_gpus


@pytest.mark.parametrize(
    ("devices", "ranks", "cores", "expected"),
    [
        ([0], 1, [0, 1], ((0,),)),
        ([1], 1, [0, 1], ((1,),)),
        ([0, 1], 2, [0, 1], ((0,), (1,))),
        ([0, 1, 2, 3], 2, [4, 5, 6, 7], ((4, 5), (6, 7))),
        ([2, 3], 2, [0, 1], ((0,), (1,))),
        ([0, 1], 1, [5], ((5,),)),
    ],
)
def test_each_rank_has_its_cores(
    devices: list[int], ranks: int, cores: list[int], expected: Any
) -> None:
    assert cores_of_ranks(devices, ranks, cores) == expected


def test_ranks_are_bound_and_have_one_thread_a_core() -> None:
    found = on_cpus(((0,), (1,)), Path("/private"))
    assert found["VLLM_CPU_OMP_THREADS_BIND"] == "0|1"
    assert found["OMP_NUM_THREADS"] == "1"
    assert on_cpus(((0, 1),), Path("/private"))["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize(
    "found", [on_cpus(((0,),), Path("/private")), on_gpus([2, 3], Path("/private"))]
)
def test_nothing_reaches_for_the_network_or_other_folders(found: dict[str, str]) -> None:
    assert found["HF_HUB_OFFLINE"] == found["VLLM_NO_USAGE_STATS"] == "1"
    assert found["VLLM_PLUGINS"] == "appliance_sealed_loader"
    assert found["VLLM_HOST_IP"] == "127.0.0.1"
    assert {found[name] for name in ("TMPDIR", "VLLM_RPC_BASE_PATH", "HF_HOME")} == {"/private"}


def test_gpus_are_chosen_by_index() -> None:
    assert on_gpus([2, 3], Path("/private"))["CUDA_VISIBLE_DEVICES"] == "2,3"
