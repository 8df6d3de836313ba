"""A job may make two artifacts of one kind: slots tell them apart, for its ranks and at its end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save

from appliance.api.jobs.v1 import job_pb2
from appliance.control.store import tables
from appliance.kinds import kind_of, train
from appliance.kinds.kind import Makes
from tests.fakes import tiny_model
from tests.fakes.lab import Lab

Job = job_pb2.Job


@contextmanager
def making(*makes: Makes) -> Iterator[None]:
    """Train jobs make something else, and nothing of that is left afterwards."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            kind_of.cache_clear()
            patch.setattr(train, "KIND", replace(train.KIND, makes=makes))
            yield
    finally:
        kind_of.cache_clear()


async def test_a_job_makes_two_models(lab: Lab) -> None:
    slots = ("teacher", "student")
    with making(*(Makes(slot, "output_model", "model") for slot in slots)):
        node, work = await lab.started()
        keys = {key.slot: key for key in node.keys(work).outputs}
        assert {key.kind for slot, key in keys.items() if slot != "checkpoints"} == {"model"}
        assert keys["teacher"].folder != keys["student"].folder
        made = {slot: tiny_model.files() for slot in ("teacher", "student")}
        node.succeed(work, made)
        lab.work.storage.do_all()
        assert sorted(lab.job().outputs) == [
            "projects/demo/models/m-t1/versions/1",
            "projects/demo/models/m-t1/versions/2",
        ]
        slots = {row.slot for row in lab.rows(tables.artifact_version) if row.state == "complete"}
        assert slots == {"", "teacher", "student"}


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({"part-00000.jsonl": b"{}\n{}\n", "part-00001.jsonl": b"{}\n"}, Job.STATE_SUCCEEDED),
        ({"part-0.jsonl": b"{}\n"}, Job.STATE_FAILED),
        ({"part-00000.jsonl": b"{}\n", "secrets.txt": b"x"}, Job.STATE_FAILED),
    ],
)
async def test_text_that_a_job_made_is_counted_or_refused(
    lab: Lab, files: dict[str, bytes], state: Job.State
) -> None:
    with making(Makes("kept", "output_model", "text")):
        node, work = await lab.started(output_model="projects/demo/datasets/kept")
        node.succeed(work, {"kept": files})
        lab.work.storage.do_all()
        assert lab.job().state == state
    (made,) = [row for row in lab.rows(tables.artifact_version) if row.slot == "kept"] or [None]
    if state == Job.STATE_SUCCEEDED:
        assert made is not None
        assert made.facts == {"kind": "text", "documents": 3, "tokens": 0}
    else:
        assert made is None
        assert "text has files part-00000.jsonl" in lab.job().state_reason


async def test_pairs_that_a_job_made_are_counted(lab: Lab) -> None:
    with making(Makes("kept", "output_model", "pairs")):
        node, work = await lab.started(output_model="projects/demo/datasets/kept")
        node.succeed(work, {"kept": {"part-00000.jsonl": b"{}\n{}\n"}})
        lab.work.storage.do_all()
        assert lab.job().state == Job.STATE_SUCCEEDED
    (made,) = [row for row in lab.rows(tables.artifact_version) if row.slot == "kept"]
    assert made.facts == {"kind": "pairs", "documents": 2, "tokens": 0}


def adapter(rank: int = 4, **files: bytes) -> dict[str, bytes]:
    """Files of a small adapter; `rank` is that of its tensors."""
    config = {
        "base_model_name_or_path": "projects/demo/models/base/versions/1",
        "lora_alpha": 8,
        "peft_type": "LORA",
        "r": 4,
        "revision": "0" * 64,
        "target_modules": ["q_proj"],
    }
    at = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{at}.lora_A.weight": np.zeros((rank, 16), np.float32),
        f"{at}.lora_B.weight": np.zeros((32, rank), np.float32),
    }
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": save(tensors),
    } | {name.replace("_", "."): data for name, data in files.items()}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (adapter(), ""),
        (adapter(rank=8), "not one of rank 4"),
        (adapter(model_py=b"x"), "and adapter_model.safetensors, no others"),
        ({"adapter_config.json": b"{}"}, "it has no adapter_model.safetensors"),
    ],
)
async def test_an_adapter_is_what_its_own_files_say(
    lab: Lab, files: dict[str, bytes], reason: str
) -> None:
    with making(Makes("adapter", "output_model", "adapter")):
        node, work = await lab.started()
        node.succeed(work, {"adapter": files})
        lab.work.storage.do_all()
        assert lab.job().state == (Job.STATE_FAILED if reason else Job.STATE_SUCCEEDED)
        assert reason in lab.job().state_reason
    made = [row for row in lab.rows(tables.artifact_version) if row.slot == "adapter"]
    assert [(row.facts["kind"], row.facts["parameters"]) for row in made] == (
        [] if reason else [("adapter", 4 * (16 + 32))]
    )
