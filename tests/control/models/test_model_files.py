"""What a model from outside may be: names, configuration, weights."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from appliance.control.services import model_facts, model_files, weights
from appliance.control.services.weights import HeaderCheck
from appliance.core.errors import InvalidInput
from appliance.core.tokenizers import LARGEST_TEMPLATE, LARGEST_TOKENIZER
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


def test_the_files_of_real_models_are_kept_and_their_papers_read_past() -> None:
    kept = [
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
        "chat_template.jinja", "model.safetensors", "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
    ]  # fmt: skip
    assert [model_files.check_name(name) for name in kept] == [True] * len(kept)
    assert [model_files.check_name(name) for name in ("LICENSE", "README.md")] == [False, False]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"auto_map": {"AutoModel": "modeling.Evil"}}, "code to run"),
        ({"nested": {"trust_remote_code": True}}, "code to run"),
        ({"list": [{"auto_map": 1}]}, "code to run"),
        ({"_name_or_path": "/home/x/model"}, "outside the model"),
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
        ({"quantization_config": {"quant_method": "gptq"}}, "compressed-tensors"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "one group"),
    ],
)
def test_a_configuration_out_of_bounds_is_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        model_files.check_config(tiny_model.CONFIG | change)


def test_a_good_configuration_and_its_format() -> None:
    config = model_files.check_config(tiny_model.CONFIG)
    assert (config.head_dim, config.key_value_heads, config.format) == (4, 2, "bfloat16")
    int8 = {"num_bits": 8, "type": "int"}
    quantized = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": int8, "input_activations": int8}},
    }
    found = model_files.check_config(tiny_model.CONFIG | {"quantization_config": quantized})
    assert found.format == "w8a8-int8"


def header_of(data: bytes) -> HeaderCheck:
    check = HeaderCheck("model.safetensors")
    # In pieces of odd sizes, as a stream brings them.
    for start in range(0, len(data), 997):
        check.feed(data[start : start + 997])
    check.finish()
    return check


def test_a_safetensors_file_in_pieces_is_read_as_it_is() -> None:
    found = header_of(tiny_model.files()["model.safetensors"]).tensors
    assert found["model.norm.weight"] == weights.Tensor("BF16", (16,))
    config = model_files.check_config(tiny_model.CONFIG)
    assert weights.count_parameters(config, found) == tiny_model.PARAMETERS


def test_a_header_that_lies_is_refused_as_soon_as_it_has_come() -> None:
    lie = {"dtype": "BF16", "shape": [9], "data_offsets": [0, 16]}
    data = tiny_model.safetensors({"a": (8,)}, a=lie)
    check = HeaderCheck("model.safetensors")
    check.feed(data[:20])
    with pytest.raises(InvalidInput, match="not the size of its tensor") as caught:
        check.feed(data[20:-16])
    assert list(caught.value.fields) == ["model.safetensors"]


SPOILT = {
    "F64": (struct.pack("<d", float("nan")), struct.pack("<d", 1.7e308)),
    "F32": (struct.pack("<f", float("inf")), struct.pack("<f", -3.4e38)),
    "F16": (struct.pack("<e", float("-inf")), struct.pack("<e", -65504.0)),
    "BF16": (b"\x80\xff", b"\x7f\xff"),
    "F8_E5M2": (b"\x7c", b"\xfb"),
    "F8_E4M3": (b"\xff", b"\xfe"),
    "I32": (None, b"\xff" * 4),
}


@pytest.mark.parametrize("dtype", SPOILT)
def test_a_number_that_is_none_is_refused_wherever_it_stands(dtype: str) -> None:
    """The largest numbers of each type pass; NaN and infinity do not, in any piece of a file."""
    spoilt, largest = SPOILT[dtype]
    size = len(largest)
    count = 70_000
    entry = {"dtype": dtype, "shape": [count], "data_offsets": [4, 4 + count * size]}
    head = tiny_model.safetensors({"a": (2,)}, b=entry)
    good = bytearray(head + largest * count)
    header_of(bytes(good))
    if spoilt is None:
        return
    for place in (0, 1, 32_767, 65_535, count - 1):
        start = len(head) + place * size
        bad = bytes(good[:start] + spoilt + good[start + size :])
        with pytest.raises(InvalidInput, match="has a number in 'b' that is none"):
            header_of(bad)


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
    config = model_files.check_config(tiny_model.CONFIG)
    with pytest.raises(InvalidInput, match="id 64, but the model's embedding has 64 rows"):
        model_files.check_ids(config, {file: highest_id(file, value)})
    fits = {"pad_token_id": -1, "eos_token_id": [63], "max_length": 200}
    model_files.check_ids(config, {"config.json": highest_id("config.json", fits)})


def highest_id(file: str, value: dict[str, Any]) -> int:
    return model_files.check_file(file, json.dumps(value).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95pickle",
        (1 << 60).to_bytes(8, "little") + b"{}",
        (1 << 24).to_bytes(8, "little") + b" " * 100,
        (0).to_bytes(8, "little"),
        (2).to_bytes(8, "little") + b"{}x",
        (20).to_bytes(8, "little") + b'{"a": {}, "a":   {}}',
    ],
)
def test_what_is_no_safetensors_file_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="safetensors"):
        header_of(data)


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
    config = model_files.check_config(tiny_model.CONFIG)
    wanted: dict[str, Any] = dict(weights.shapes(config)) | change
    found = {name: weights.Tensor("BF16", shape) for name, shape in wanted.items() if shape}
    with pytest.raises(InvalidInput, match=text):
        weights.count_parameters(config, found)


def test_an_index_must_say_exactly_which_file_holds_which_tensor() -> None:
    files = {"model-00001-of-00001.safetensors": {"a": weights.Tensor("BF16", (1,))}}
    weights.check_index({"weight_map": {"a": "model-00001-of-00001.safetensors"}}, files)
    for wrong in ({}, {"weight_map": {}}, {"weight_map": {"a": "../x"}}):
        with pytest.raises(InvalidInput, match="index"):
            weights.check_index(wrong, files)


def test_the_same_tensor_in_two_files_is_refused() -> None:
    config = model_files.check_config(tiny_model.CONFIG)
    one = {"model.norm.weight": weights.Tensor("BF16", (16,))}
    with pytest.raises(InvalidInput, match="two weight files"):
        model_facts.facts(config, {"a": one, "b": one}, 0)


@pytest.mark.parametrize(
    "template",
    ["x" * (LARGEST_TEMPLATE + 1), "é" * (LARGEST_TEMPLATE // 2 + 1)],
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
    "template", ["x" * LARGEST_TEMPLATE, None, 5, [], [5], [{"name": "x"}], [{"template": 5}]]
)
def test_other_templates_are_taken(template: object) -> None:
    assert highest_id("tokenizer_config.json", {"chat_template": template}) == -1


def test_what_an_import_takes_is_what_a_gateway_takes() -> None:
    assert model_files.largest("chat_template.jinja") == LARGEST_TEMPLATE
    assert model_files.largest("tokenizer.json") == LARGEST_TOKENIZER
