"""What a model from outside may be: names, configuration, weights."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.core import model_config, model_files
from appliance.core.errors import InvalidInput
from appliance.core.tokenizers import MAX_TEMPLATE, MAX_TOKENIZER
from tests.fakes import tiny_model

pytestmark = pytest.mark.attack

REFUSED_NAMES = [
    "pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "weights.pkl", "a.pickle",
    "x.npy", "x.npz", "modeling_evil.py", "lib.so", "model.tar", "model.tar.gz", "m.zip", "m.h5",
    ".metadata", "model.safetensors.py", "../config.json", "/etc/passwd", "sub/config.json",
    "C:\\config.json", "config.json\0", "CONFIG.JSON", "other.safetensors", "model.gguf", "",
]  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_NAMES)
def test_a_file_that_could_hold_code_or_goes_elsewhere_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidInput, match="refused"):
        model_files.check_name(name)


KEPT = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
]  # fmt: skip
HARMLESS = [
    "LICENSE", "LICENSE.txt", "LICENSE-MODEL", "Notice.md", "README.md", ".gitattributes",
    "USE_POLICY.md", "eval_results.json", "tokenizer.model", "vocab.txt", "benchmark.PNG",
    "params.json", "tokenizer.model.v3", "special.jsonl", "training.log",
]  # fmt: skip


def test_the_files_of_real_models_are_kept_and_what_nobody_reads_is_left_out() -> None:
    assert [model_files.check_name(name) for name in KEPT] == [True] * len(KEPT)
    assert [model_files.check_name(name) for name in HARMLESS] == [False] * len(HARMLESS)
    found = model_files.sort_files([*HARMLESS, *KEPT])
    assert (found.kept, list(found.left_out), found.problems) == (KEPT, HARMLESS, {})


def test_weights_in_another_format_are_left_out_beside_safetensors_and_refused_alone() -> None:
    others = ["pytorch_model.bin", "consolidated.00.pth", "consolidated.safetensors", "model.gguf"]
    needed = ["config.json", "tokenizer.json", "model.safetensors"]
    beside = model_files.sort_files([*others, *needed])
    assert (beside.kept, list(beside.left_out), beside.problems) == (needed, others, {})
    alone = model_files.sort_files([*others, *needed[:2]]).problems
    assert list(alone) == [repr(name) for name in others]
    assert "can hold code" in alone["'pytorch_model.bin'"]
    assert all("save_pretrained" in alone[repr(name)] for name in others)


def test_everything_that_is_wrong_with_the_files_of_a_folder_is_said_at_once() -> None:
    names = [
        "Config.json",
        "modeling_x.py",
        "adapter_config.json",
        "model-00001-of-00002.safetensors",
    ]
    found = model_files.sort_files([*names, "model-00002-of-00002.safetensors", "weights.tar"])
    assert list(found.problems) == [
        "'Config.json'", "'modeling_x.py'", "'adapter_config.json'", "'weights.tar'",
        "config.json", "tokenizer.json", "model.safetensors.index.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"auto_map": {"AutoModel": "modeling.Evil"}}, "code to run"),
        ({"nested": {"trust_remote_code": True}}, "code to run"),
        ({"list": [{"auto_map": 1}]}, "code to run"),
        ({"nested": {"_name_or_path": "/home/x/model"}}, "outside the model"),
        ({"impl": "modeling_evil.py"}, "outside the model"),
        ({"attn_implementation": "somebody/kernels"}, "code to run"),
        ({"nested": {"_attn_implementation": {"text": "somebody/kernels"}}}, "code to run"),
        ({"base": "https://example.org/x"}, "outside the model"),
        ({"base": "s3://bucket/x"}, "outside the model"),
        ({"base": "a/../../b"}, "outside the model"),
        ({"base": "~/x"}, "outside the model"),
        ({"base": "C:\\x"}, "outside the model"),
    ],
)
def test_a_configuration_that_fetches_or_runs_something_is_refused(
    change: dict[str, Any], text: str
) -> None:
    data = json.dumps(tiny_model.CONFIG | change).encode()
    with pytest.raises(InvalidInput, match=text):
        model_files.check_file("config.json", data)


@pytest.mark.parametrize(
    "harmless",
    [
        {"trust_remote_code": False},
        {"auto_map": None},
        {"attn_implementation": "sdpa"},
        {"_name_or_path": "/home/somebody/model"},
    ],
)
def test_what_asks_for_no_code_is_no_reason_to_refuse(harmless: dict[str, Any]) -> None:
    model_files.check_file("config.json", json.dumps(tiny_model.CONFIG | harmless).encode())


def test_all_that_is_wrong_is_said_at_once() -> None:
    wrong = {"hidden_size": 0, "vocab_size": None, "tie_word_embeddings": 3, "dtype": "int4"}
    with pytest.raises(InvalidInput) as raised:
        model_config.check_config(tiny_model.CONFIG | wrong)
    assert set(raised.value.fields) == {f"config.json.{member}" for member in wrong}
    evil = {"auto_map": {"AutoModel": "x.Y"}, "base": "/etc/passwd"}
    with pytest.raises(InvalidInput) as raised:
        model_files.check_file("config.json", json.dumps(evil).encode())
    assert list(raised.value.fields) == ["config.json.auto_map", "config.json.base"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"a": 1, "a": 2}', "same key twice"),
        (b'{"a": NaN}', "where a number belongs"),
        (b"[1]", "not a JSON object"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"a":' * 100_000, "nested more than 64 deep"),
    ],
)
def test_json_that_two_readers_could_read_differently_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        model_files.check_file("generation_config.json", data)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"architectures": ["EvilForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": []}, "exactly one architecture"),
        ({"architectures": [{}]}, "has the architecture"),
        ({"model_type": "gpt2"}, "model_type"),
        ({"hidden_size": 1 << 40}, "hidden_size outside"),
        ({"hidden_size": -1}, "hidden_size outside"),
        ({"hidden_size": "16"}, "hidden_size outside"),
        ({"hidden_size": True}, "hidden_size outside"),
        ({"num_hidden_layers": None}, "no num_hidden_layers"),
        ({"num_key_value_heads": 3}, "do not share"),
        ({"hidden_size": 18}, "do not share"),
        ({"tie_word_embeddings": "yes"}, "neither true nor false"),
        ({"torch_dtype": "int4"}, "dtype"),
        ({"original_max_position_embeddings": 1 << 40}, "original_max_position_embeddings outside"),
        ({"quantization_config": {"quant_method": "gptq"}}, "compressed-tensors"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "one group"),
    ],
)
def test_a_configuration_out_of_bounds_is_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        model_config.check_config(tiny_model.CONFIG | change)


@pytest.mark.parametrize(
    "change",
    [
        {"text_config": {"hidden_size": 1 << 40}},
        {"per_layer_config": {"0": {"intermediate_size": 1 << 40}}},
        {"num_kv_heads": 1 << 40},
        {"compression_config": {"quant_method": "gguf"}},
    ],
)
def test_a_member_by_which_a_library_reads_other_sizes_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="remove that member"):
        model_config.check_config(tiny_model.CONFIG | change)
    absent = dict.fromkeys(change)
    assert model_config.check_config(tiny_model.CONFIG | absent)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize("member", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    "change",
    [
        {"factor": 1e9},
        {"factor": 4e2, "original_max_position_embeddings": 1 << 20},
        {"original_max_position_embeddings": 1 << 40},
        {"factor": "4"},
        {"factor": -1},
        {"factor": True},
    ],
)
def test_a_table_of_positions_that_no_memory_holds_is_refused(
    member: str, change: dict[str, Any]
) -> None:
    """An engine makes it before it looks at a weight."""
    for value in (YARN | change, {"full_attention": YARN | change}):
        with pytest.raises(InvalidInput, match=f"has {member} for more than 16777216 positions"):
            model_config.check_config(tiny_model.CONFIG | {member: value})
    for value in (YARN, {"sliding_attention": {"rope_theta": 1e4}, "full_attention": YARN}, None):
        assert model_config.check_config(tiny_model.CONFIG | {member: value})


def test_a_good_configuration_and_its_format() -> None:
    config = model_config.check_config(tiny_model.CONFIG)
    assert (config.sizes.head_dim, config.sizes.key_value_heads, config.format) == (
        4,
        2,
        "bfloat16",
    )
    int8 = {"num_bits": 8, "type": "int"}
    quantized = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": int8, "input_activations": int8}},
    }
    found = model_config.check_config(tiny_model.CONFIG | {"quantization_config": quantized})
    assert found.format == "w8a8-int8"


@pytest.mark.parametrize(
    ("file", "value"),
    [
        ("tokenizer.json", {"model": {"vocab": {"a": 0, "b": 64}}}),
        ("tokenizer.json", {"model": {"vocab": [["a", 0.0]] * 65}}),
        ("tokenizer.json", {"model": {"vocab": {}}, "added_tokens": [{"id": 64}]}),
        ("vocab.json", {"a": 64}),
        ("added_tokens.json", {"<s>": 64}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"64": {"content": "<s>"}}}),
        (
            "tokenizer.json",
            {"post_processor": {"type": "Sequence", "processors": [{"sep": ["</s>", 64]}]}},
        ),
        ("tokenizer.json", {"post_processor": {"special_tokens": {"<s>": {"ids": [64]}}}}),
        ("generation_config.json", {"forced_bos_token_id": 64}),
        ("generation_config.json", {"suppress_tokens": [1, 64]}),
        ("generation_config.json", {"bad_words_ids": [[1, 2], [64]]}),
        ("config.json", {"eos_token_id": 64}),
        ("generation_config.json", {"eos_token_id": [2, 64]}),
    ],
)
def test_an_id_beyond_the_embedding_is_refused(file: str, value: dict[str, Any]) -> None:
    config = model_config.check_config(tiny_model.CONFIG)
    with pytest.raises(InvalidInput, match="id 64, but the model's embedding has 64 rows"):
        model_files.check_ids(config, {file: highest_id(file, value)})
    fits = {"pad_token_id": -1, "eos_token_id": [63], "max_length": 200}
    model_files.check_ids(config, {"config.json": highest_id("config.json", fits)})


def highest_id(file: str, value: dict[str, Any]) -> int:
    return model_files.check_file(file, json.dumps(value).encode())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model.norm.weight": None}, "model.norm.weight' is missing"),
        ({"model.norm.weight": (17,)}, r"has the shape \[17\], not \[16\]"),
        ({"evil.weight": (1,)}, "evil.weight' does not belong"),
    ],
)
def test_weights_that_are_not_the_configurations_are_refused(
    change: dict[str, tuple[int, ...] | None], text: str
) -> None:
    config = model_config.check_config(tiny_model.CONFIG)
    wanted: dict[str, Any] = dict(config.shapes) | change
    found = {name: shape for name, shape in wanted.items() if shape}
    with pytest.raises(InvalidInput, match=text):
        model_config.count_parameters(config, found)


def test_an_index_must_say_exactly_which_file_holds_which_tensor() -> None:
    files = {"model-00001-of-00001.safetensors": ["a"]}
    model_files.check_index({"weight_map": {"a": "model-00001-of-00001.safetensors"}}, files)
    for wrong in ({}, {"weight_map": {}}, {"weight_map": {"a": "../x"}}):
        with pytest.raises(InvalidInput, match="index"):
            model_files.check_index(wrong, files)


@pytest.mark.parametrize(
    "template",
    ["x" * (MAX_TEMPLATE + 1), "é" * (MAX_TEMPLATE // 2 + 1)],
    ids=["bytes", "letters"],
)
@pytest.mark.parametrize("named", [False, True])
def test_a_template_that_no_gateway_takes_is_refused_at_the_import(
    template: str, *, named: bool
) -> None:
    found = [{"name": "default", "template": template}] if named else template
    with pytest.raises(InvalidInput, match="no gateway could serve the model: make it shorter"):
        highest_id("tokenizer_config.json", {"chat_template": found})


@pytest.mark.parametrize(
    "template", ["x" * MAX_TEMPLATE, None, 5, [], [5], [{"name": "x"}], [{"template": 5}]]
)
def test_other_templates_are_taken(template: object) -> None:
    assert highest_id("tokenizer_config.json", {"chat_template": template}) == -1


def test_what_an_import_takes_is_what_a_gateway_takes() -> None:
    assert model_files.largest("chat_template.jinja") == MAX_TEMPLATE
    assert model_files.largest("tokenizer.json") == MAX_TOKENIZER
