"""Names and shapes of weights are a function of the configuration, as transformers has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import PreTrainedModel

from appliance.core import model_config
from appliance.core.errors import InvalidInput
from appliance.core.families import BY_CLASS, FAMILIES, Family
from appliance.core.model_config import ModelConfig, check_config
from tests.fakes import tiny_family
from tests.families.conftest import Folder

Shape = tuple[int, ...]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("LlamaForCausalLM", {"head_dim": 64, "num_key_value_heads": None}),
    ("Qwen2ForCausalLM", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    ("Qwen3ForCausalLM", {"attention_bias": True, "head_dim": 64}),
    ("MistralForCausalLM", {"head_dim": 64, "sliding_window": None}),
    ("Gemma2ForCausalLM", {"attention_bias": True, "head_dim": 64}),
    ("Gemma3ForCausalLM", {"attention_bias": True, "head_dim": 64}),
    ("Phi3ForCausalLM", {"tie_word_embeddings": True, "num_key_value_heads": None}),
    ("GPT2LMHeadModel", {"n_inner": 300, "tie_word_embeddings": False}),
    ("GPTNeoXForCausalLM", {"attention_bias": False}),
    ("GPTNeoXForCausalLM", {"tie_word_embeddings": True}),
    ("FalconH1ForCausalLM", {"attention_bias": True, "mlp_bias": True, "mamba_conv_bias": False}),
    ("FalconH1ForCausalLM", {"mamba_rms_norm": True, "mamba_n_groups": 2, "mamba_proj_bias": True}),
    ("FalconH1ForCausalLM", {"mamba_d_ssm": None, "mamba_n_heads": 8, "projectors_bias": True}),
    ("GraniteMoeHybridForCausalLM", {"attention_bias": True, "mamba_proj_bias": True}),
    ("GraniteMoeHybridForCausalLM", {"mamba_d_conv": 3, "tie_word_embeddings": True}),
    ("GraniteMoeHybridForCausalLM", {"layer_types": ["attention", "mamba"]}),
    ("BertForMaskedLM", {"type_vocab_size": 5, "tie_word_embeddings": False}),
    ("DistilBertForMaskedLM", {"tie_word_embeddings": False}),
    ("ModernBertForMaskedLM", {"norm_bias": True, "attention_bias": True, "mlp_bias": True}),
    ("ModernBertForMaskedLM", {"classifier_bias": True, "decoder_bias": False}),
    ("ModernBertForMaskedLM", {"tie_word_embeddings": False}),
]


def saved(folder: Path) -> tuple[ModelConfig, dict[str, Shape]]:
    """What a folder's configuration says, and the tensors in it."""
    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", "pt") as file:  # type: ignore[no-untyped-call]
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return check_config(config), shapes


def agree(model: PreTrainedModel, folder: Path) -> None:
    """The saved tensors are exactly those that the configuration says."""
    config, shapes = saved(folder)
    tied = config.family.tied_names if config.sizes.tie_embeddings else frozenset()
    assert {name: shape for name, shape in shapes.items() if name not in tied} == config.shapes
    # Tied weights count once here and in transformers.
    total = sum(parameter.numel() for parameter in model.parameters())
    assert model_config.count_parameters(config, shapes) == total


@pytest.mark.parametrize("architecture", tiny_family.CLASSES)
def test_every_class(tiny: Folder, architecture: str) -> None:
    model, folder = tiny(architecture)
    agree(model, folder)


@pytest.mark.parametrize(("architecture", "changes"), VARIANTS)
def test_what_a_configuration_can_change(
    tmp_path: Path, architecture: str, changes: dict[str, Any]
) -> None:
    model = tiny_family.build(architecture, **changes)
    agree(model, tiny_family.save(model, tmp_path))


@pytest.mark.parametrize("architecture", tiny_family.CLASSES)
def test_what_is_left_out_is_as_transformers_has_it(tiny: Folder, architecture: str) -> None:
    """Files of older releases say less: tied or not, biases, heads."""
    _, folder = tiny(architecture)
    config, _ = saved(folder)
    said = json.loads((folder / "config.json").read_text())
    family = BY_CLASS[architecture]
    needed = {"architectures", "model_type", "layer_types", "num_local_experts"}
    needed |= {"shared_intermediate_size", "mamba_n_heads", "mamba_d_ssm", "mamba_n_groups"}
    needed |= {"mamba_d_state", "num_key_value_heads"}
    needed |= {name for name in vars(family.names).values() if name not in family.optional}
    bare = check_config({key: value for key, value in said.items() if key in needed})
    assert bare.shapes == config.shapes


def test_a_file_may_hold_what_it_is_tied_to_and_the_buffers_of_older_releases() -> None:
    for family in FAMILIES:
        for architecture in family.classes:
            model = tiny_family.build(architecture)
            config = check_config(model.config.to_dict() | {"architectures": [architecture]})
            more = {f"a{ending}": (1,) for ending in family.buffers}
            if config.sizes.tie_embeddings:
                more |= dict.fromkeys(family.tied_names, (1,))
            assert model_config.count_parameters(config, {**config.shapes, **more})


def test_widths_of_heads_may_be_left_to_the_class(tiny: Folder) -> None:
    config, _ = saved(tiny("GraniteMoeHybridForCausalLM")[1])
    members = json.loads((tiny("GraniteMoeHybridForCausalLM")[1] / "config.json").read_text())
    assert check_config(members | {"mamba_d_head": "auto"}).shapes == config.shapes


def test_gpt2_as_it_was_first_published_has_no_prefix() -> None:
    model = tiny_family.build("GPT2LMHeadModel")
    config = check_config(model.config.to_dict() | {"architectures": ["GPT2LMHeadModel"]})
    bare = {name.removeprefix("transformer."): shape for name, shape in config.shapes.items()}
    count = model_config.count_parameters(config, bare | {"h.0.attn.bias": (1, 1, 512, 512)})
    assert count == model_config.count_parameters(config, config.shapes)
    mixed = {"transformer.wte.weight": (512, 128), **bare}
    with pytest.raises(InvalidInput, match=r"transformer\.wpe"):
        model_config.count_parameters(config, mixed)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_another_name_of_a_size_says_the_same_or_is_refused(family: Family) -> None:
    """transformers sets the size by either name, the last one wins, and one alone was checked."""
    architecture = next(iter(family.classes))
    written = tiny_family.build(architecture).config
    assert family.aliases == written.attribute_map
    config = written.to_dict() | {"architectures": [architecture]}
    equal = {member: config[name] for member, name in family.aliases.items() if name in config}
    assert check_config(config | equal)
    heads = {"num_key_value_heads", "head_dim"} if not family.names.head_dim else set()
    for member in heads | set(family.aliases):
        with pytest.raises(InvalidInput) as raised:
            check_config(config | {member: 1 << 40})
        assert list(raised.value.fields) == [f"config.json.{member}"]


def test_a_hybrid_with_experts_is_refused_with_what_to_do() -> None:
    config = tiny_family.build("GraniteMoeHybridForCausalLM").config.to_dict()
    wrong = {"num_local_experts": 4, "layer_types": ["mamba", "brown"]}
    with pytest.raises(InvalidInput) as raised:
        check_config(config | {"architectures": ["GraniteMoeHybridForCausalLM"]} | wrong)
    assert sorted(raised.value.fields) == [
        "config.json.layer_types",
        "config.json.num_local_experts",
    ]
    assert "without them" in raised.value.message
