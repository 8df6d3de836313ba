from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from appliance.core import families
from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.core.families import FamilyUse
from appliance.worker import admission

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": 64,
    "intermediate_size": 128,
    "vocab_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 1024,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "_name_or_path": "/home/somebody/model",
}


def test_a_plain_configuration_passes_without_its_origin() -> None:
    found = admission.checked_config(CONFIG | {"trust_remote_code": False})
    assert found.config == {
        key: value for key, value in CONFIG.items() if key != "_name_or_path"
    } | {"trust_remote_code": False}
    assert (found.architecture, found.dtype, found.sizes.keys) == (
        "LlamaForCausalLM",
        "bfloat16",
        32,
    )


def test_compressed_tensors_pass() -> None:
    int8 = {"num_bits": 8, "type": "int"}
    quantized = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": int8, "input_activations": int8}},
    }
    found = admission.checked_config(CONFIG | {"quantization_config": quantized})
    assert found.config["quantization_config"] == quantized


@pytest.mark.attack
@pytest.mark.parametrize(
    ("change", "member"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"rope_parameters": {"auto_map": {"x": "y"}}}, "rope_parameters.auto_map"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"attn_implementation": "somebody/kernels"}, "attn_implementation"),
        ({"architectures": ["EvilForCausalLM"]}, "architectures"),
        ({"architectures": ["LlamaForCausalLM", "EvilForCausalLM"]}, "architectures"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"tokenizer": "/etc/passwd"}, "tokenizer"),
        ({"a": [{"b": "../../secret"}]}, "a[0].b"),
        ({"draft": "https://example.invalid/model"}, "draft"),
        ({"draft": "C:\\model"}, "draft"),
        ({"impl": "modeling_evil.py"}, "impl"),
        ({"dtype": "float64"}, "dtype"),
        ({"quantization_config": {"quant_method": "evil"}}, "quantization_config"),
        ({"quantization_config": "evil"}, "quantization_config"),
    ],
)
def test_a_configuration_that_reaches_outside_is_refused(
    change: dict[str, Any], member: str
) -> None:
    with pytest.raises(InvalidInput) as raised:
        admission.checked_config(CONFIG | change)
    assert list(raised.value.fields) == [f"config.json.{member}"]


@pytest.mark.parametrize("value", [None, [], "x"])
def test_what_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInput):
        admission.checked_config(value)


def test_weights_are_found_among_the_files() -> None:
    files = ["config.json", "model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"]
    assert admission.weight_files([*files, "tokenizer.json", "chat_template.jinja"]) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


@pytest.mark.attack
@pytest.mark.parametrize(
    "file", ["modeling_evil.py", "pytorch_model.bin", "model.pt", "x.so", "weights.pkl", "noending"]
)
def test_a_file_that_could_hold_code_is_refused(file: str) -> None:
    with pytest.raises(InvalidInput, match=file):
        admission.weight_files(["config.json", "model.safetensors", file])


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(InvalidInput):
        admission.weight_files(["config.json"])


MODEL = admission.checked_config(CONFIG)


def test_the_sequence_length_is_the_models_or_shorter() -> None:
    assert admission.sequence_length(MODEL.sizes, 0) == 1024
    assert admission.sequence_length(MODEL.sizes, 100) == 100
    with pytest.raises(InvalidInput):
        admission.sequence_length(MODEL.sizes, 1025)


def test_the_cache_holds_one_longest_sequence_and_a_block() -> None:
    # 2 (key, value) x 3 layers x 2 heads x 16 numbers x 2 bytes x 2 blocks x 128 tokens.
    needed = 2 * 3 * 2 * 16 * 2 * 2 * 128
    admission.check_cache(MODEL, 100, needed)
    with pytest.raises(FailedPrecondition) as raised:
        admission.check_cache(MODEL, 100, needed - 1)
    assert raised.value.metadata == {"needed": str(needed)}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_that_divide_the_heads_pass(ranks: int) -> None:
    admission.check_ranks(MODEL, ranks)


@pytest.mark.parametrize("ranks", [3, 8])
def test_ranks_that_do_not_divide_the_heads_are_refused(ranks: int) -> None:
    with pytest.raises(InvalidInput):
        admission.check_ranks(MODEL, ranks)


def test_a_family_that_was_tried_on_one_device_has_one_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = replace(families.BY_CLASS["Qwen2ForCausalLM"], works=frozenset({FamilyUse.TEXT}))
    monkeypatch.setattr(families, "BY_CLASS", {"Qwen2ForCausalLM": row})
    model = admission.checked_config(
        CONFIG | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    )
    admission.check_ranks(model, 1)
    with pytest.raises(InvalidInput, match="--tensor-parallel 1"):
        admission.check_ranks(model, 2)


def test_a_family_that_is_not_served_says_so() -> None:
    bert = {"architectures": ["BertModel"], "model_type": "bert", "num_key_value_heads": None}
    with pytest.raises(InvalidInput, match="family BERT, for which `serve text` does not work"):
        admission.checked_config(CONFIG | bert)
