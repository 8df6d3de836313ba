"""Rounding by hand, and a quantized model's files as vLLM expects them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from transformers import LlamaConfig, LlamaForCausalLM

from appliance.core.errors import InvalidInput
from appliance.jobs.compress.quantize import quantize_rows, run
from tests.fakes.job_context import FakeJob

MODEL = "projects/p/models/m/versions/1"


def sealed_job(folder: Path, files: dict[str, Any]) -> FakeJob:
    job = FakeJob(folder, "quantize", {"model": MODEL, "scheme": "SCHEME_W8A8_INT8"})
    job.add_input(MODEL, "model", files)
    job.add_output("model")
    return job


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    made: dict[str, Any] = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    return made | {"tokenizer.json": b"{}"}


def test_rows_are_scaled_by_their_largest_and_rounded_to_nearest() -> None:
    weight = torch.tensor([[127.5, -63.0, 1.4, 0.0], [0.51, -1.02, 0.255, 0.0]])
    integers, scale = quantize_rows(weight)
    assert scale.tolist() == [[1.0], [pytest.approx(0.008)]]
    # 127.5 rounds to even (128) and is held to the largest 8-bit integer.
    assert integers.tolist() == [[127, -63, 1, 0], [64, -128, 32, 0]]
    assert integers.dtype == torch.int8


def test_a_row_of_zeros_stays_zero() -> None:
    integers, scale = quantize_rows(torch.zeros(2, 3))
    assert not integers.any()
    assert bool((scale > 0).all())


def test_files_are_in_the_layout_that_is_served(tmp_path: Path, files: dict[str, Any]) -> None:
    job = sealed_job(tmp_path, files)
    run(job.context())
    made = job.output("model")
    before, after = load(files["model.safetensors"]), load(made.read_bytes("model.safetensors"))
    layers = {name for name in before if "_proj" in name}
    assert len(layers) == 7
    assert set(after) == set(before) | {f"{name}_scale" for name in layers}
    for name, tensor in before.items():
        if name not in layers:
            assert torch.equal(after[name], tensor)
            continue
        scale = after[f"{name}_scale"]
        assert (after[name].dtype, scale.dtype) == (torch.int8, torch.bfloat16)
        assert scale.shape == (tensor.shape[0], 1)
        restored = after[name].float() * scale.float()
        assert float((restored - tensor.float()).abs().max()) <= float(scale.float().max()) * 1.1
    config = made.read_json("config.json")["quantization_config"]
    assert (config["quant_method"], config["format"]) == ("compressed-tensors", "int-quantized")
    assert config["ignore"] == ["lm_head"]
    assert made.read_bytes("tokenizer.json") == b"{}"


def test_a_quantized_model_is_not_quantized_again(tmp_path: Path, files: dict[str, Any]) -> None:
    first = sealed_job(tmp_path / "one", files)
    run(first.context())
    made = first.output("model")
    second = sealed_job(tmp_path / "two", {file: made.read_bytes(file) for file in made.files()})
    with pytest.raises(InvalidInput, match="quantized already"):
        run(second.context())
    assert second.lines("output") == []
