"""Adapters: what their configuration may say, and the tensors that this says they have."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.core.adapters import MAX_RANK, adapter_facts, check_adapter_config
from appliance.core.errors import InvalidInput

BASE = "projects/demo/models/base/versions/1"
DIGEST = "ab" * 32
# What PEFT 0.18 writes for a plain LoRA adapter, with the base named as here.
CONFIG: dict[str, Any] = {
    "alpha_pattern": {},
    "auto_mapping": None,
    "base_model_name_or_path": BASE,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "loftq_config": {},
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 4,
    "rank_pattern": {},
    "revision": DIGEST,
    "target_modules": ["q_proj", "mlp.down_proj"],
    "task_type": "CAUSAL_LM",
    "use_dora": False,
    "use_rslora": False,
}
AT = "base_model.model.model.layers.0"
TENSORS = {
    f"{AT}.self_attn.q_proj.lora_A.weight": ("F32", (4, 64)),
    f"{AT}.self_attn.q_proj.lora_B.weight": ("F32", (96, 4)),
    f"{AT}.mlp.down_proj.lora_A.weight": ("F32", (4, 128)),
    f"{AT}.mlp.down_proj.lora_B.weight": ("F32", (64, 4)),
}
Q_A = f"{AT}.self_attn.q_proj.lora_A.weight"
Q_B = f"{AT}.self_attn.q_proj.lora_B.weight"


def test_the_facts_are_those_of_its_own_files() -> None:
    assert adapter_facts(check_adapter_config(CONFIG), TENSORS, 4864) == {
        "rank": 4,
        "alpha": 16.0,
        "targets": ["mlp.down_proj", "q_proj"],
        "modules": 2,
        "base": BASE,
        "base_digest": DIGEST,
        "parameters": 4 * (64 + 96 + 128 + 64),
        "largest_tensor": 4 * 128,
        "weight_bytes": 4864,
    }


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("peft_type", "IA3"),
        ("r", 0),
        ("r", MAX_RANK + 1),
        ("r", True),
        ("r", 4.0),
        ("lora_alpha", 0),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("lora_alpha", "16"),
        ("target_modules", "(a+)+$"),
        ("target_modules", []),
        ("target_modules", ["q_proj", "q_proj"]),
        ("target_modules", ["q_proj|.*"]),
        ("target_modules", ["all-linear"]),
        ("target_modules", [f"m{n}" for n in range(65)]),
        ("base_model_name_or_path", None),
        ("base_model_name_or_path", "../base"),
        ("base_model_name_or_path", "https://hub.example/base"),
        ("base_model_name_or_path", "projects/demo/models/base"),
        ("revision", None),
        ("revision", "main"),
        ("use_dora", True),
        ("use_rslora", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 8}),
        ("layer_replication", [[0, 4]]),
        ("auto_mapping", {"base_model_class": "X"}),
        ("trainable_token_indices", [1, 2]),
    ],
)
def test_what_would_make_it_something_else_is_named(member: str, value: object) -> None:
    with pytest.raises(InvalidInput) as raised:
        check_adapter_config(CONFIG | {member: value})
    assert list(raised.value.fields) == [member]


def test_everything_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(InvalidInput) as raised:
        check_adapter_config({"use_dora": True})
    assert set(raised.value.fields) == {
        *("use_dora", "peft_type", "r", "lora_alpha", "target_modules"),
        *("base_model_name_or_path", "revision"),
    }


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({Q_A: ("F32", (8, 64))}, "not one of rank 4"),
        ({Q_B: ("F32", (4, 96))}, "not one of rank 4"),
        ({Q_A: ("F32", (4, 64, 1))}, "not one of rank 4"),
        ({Q_A: ("F32", (4, 0))}, "not one of rank 4"),
        ({Q_A: ("I8", (4, 64))}, "has the type I8"),
        ({Q_A: None}, "has only one of its two matrices"),
        ({"model.layers.0.self_attn.q_proj.weight": ("F32", (64, 64))}, "is no matrix"),
        ({f"{AT}.self_attn.q_proj.lora_C.weight": ("F32", (4, 64))}, "is no matrix"),
        ({"base_model.model.lm_head.weight": ("F32", (8, 64))}, "is no matrix"),
        ({f"{AT}.self_attn.k_proj.lora_A.weight": ("F32", (4, 64))}, "does not name"),
        ({f"{AT}.self_attn.xq_proj.lora_A.weight": ("F32", (4, 64))}, "does not name"),
        (dict.fromkeys(TENSORS), "holds no tensor"),
    ],
)
def test_tensors_are_pairs_of_its_configuration(changed: dict[str, Any], sentence: str) -> None:
    tensors = {name: tensor for name, tensor in (TENSORS | changed).items() if tensor}
    with pytest.raises(InvalidInput, match=sentence):
        adapter_facts(check_adapter_config(CONFIG), tensors, 1)
