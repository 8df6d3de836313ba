"""Perplexity against a model that transformers itself evaluates, plain and quantized."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from appliance.core.errors import FailedPrecondition, InvalidInput, Tampered
from appliance.jobs.assess.evaluate import round_to_int8, run
from appliance.jobs.compress.quantize import run as quantize
from tests.fakes.job_context import FakeJob

MODEL = "projects/p/models/m/versions/1"
DATASET = "projects/p/datasets/d/versions/1"
TEXTS = ["abc abd xyz " * 6, "the end of the text"]


def byte_tokenizer() -> Tokenizer:
    """One token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def tiny(*, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def files_of(model: LlamaForCausalLM, folder: Path) -> dict[str, Any]:
    model.save_pretrained(folder)
    made: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    return made | {"tokenizer.json": byte_tokenizer().to_str().encode()}


def evaluate(folder: Path, files: dict[str, Any], **spec: Any) -> FakeJob:
    job = FakeJob(folder, "evaluate", {"model": MODEL, "dataset": DATASET, **spec})
    job.add_input(MODEL, "model", files)
    lines = "".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(TEXTS))
    job.add_input(DATASET, "dataset", {"validation.jsonl": lines.encode()})
    return job


def expected_perplexity(model: LlamaForCausalLM, window: int) -> float:
    ids = [i for text in TEXTS for i in byte_tokenizer().encode(text).ids]
    losses = []
    for begin in range(0, len(ids), window):
        piece = torch.tensor([ids[begin : begin + window]])
        if piece.shape[1] > 1:
            with torch.no_grad():
                mean = model(input_ids=piece, labels=piece).loss.item()
            losses += [mean] * (piece.shape[1] - 1)
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize("tied", [True, False])
def test_perplexity_is_what_transformers_says(tmp_path: Path, tied: bool) -> None:  # noqa: FBT001
    model = tiny(tied=tied)
    job = evaluate(tmp_path, files_of(model, tmp_path / "hf"), window=20)
    run(job.context())
    values = job.lines("result")[-1]["value"]["values"]
    assert values["perplexity"] == pytest.approx(expected_perplexity(model, 20), rel=1e-5)
    size = sum(map(len, TEXTS))
    assert values["tokens"] == size - math.ceil(size / 20)
    bits = values["nll_per_token"] / math.log(2)
    assert values["bits_per_byte"] == pytest.approx(bits)


def test_a_quantized_model_is_measured_as_it_is_served(tmp_path: Path) -> None:
    model = tiny(tied=True)
    job = FakeJob(tmp_path / "q", "quantize", {"model": MODEL})
    job.add_input(MODEL, "model", files_of(model, tmp_path / "hf"))
    job.add_output("model")
    quantize(job.context())
    made = job.output("model")
    measured = evaluate(tmp_path / "e", {file: made.read_bytes(file) for file in made.files()})
    run(measured.context())
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            weight = module.weight.data
            scale = weight.abs().amax(-1, keepdim=True) / 127.5
            module.weight.data = (weight / scale).round().clamp(-128, 127) * scale
            module.register_forward_pre_hook(lambda _, inputs: (round_to_int8(inputs[0]),))
    found = measured.lines("result")[-1]["value"]["values"]["perplexity"]
    assert found == pytest.approx(expected_perplexity(model, 64), rel=1e-4)


def test_activations_are_rounded_for_each_token() -> None:
    values = torch.tensor([[1.0, -0.5, 0.004], [127.0, 63.4, 0.0]])
    rounded = round_to_int8(values)
    expected = torch.tensor([[1.0, -64 / 127, 1 / 127], [127.0, 63.0, 0.0]])
    assert torch.allclose(rounded, expected)


def test_a_perplexity_that_is_no_number_is_said(tmp_path: Path) -> None:
    model = tiny(tied=False)
    model.lm_head.weight.data *= 1e6
    job = evaluate(tmp_path, files_of(model, tmp_path / "hf"))
    with pytest.raises(FailedPrecondition, match="nats per token, for which no perplexity"):
        run(job.context())
    assert "perplexity not finite" in job.lines("progress")[-1]["message"]


def test_held_out_text_that_spells_a_special_token_is_text(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["<|end|>"])
    files = files_of(tiny(tied=True), tmp_path / "hf")
    files["tokenizer.json"] = tokenizer.to_str().encode()
    job = FakeJob(tmp_path, "evaluate", {"model": MODEL, "dataset": DATASET})
    job.add_input(MODEL, "model", files)
    job.add_input(DATASET, "dataset", {"validation.jsonl": b'{"text": "abc <|end|> abc"}\n'})
    run(job.context())
    assert job.lines("result")[-1]["value"]["values"]["tokens"] == len("abc <|end|> abc") - 1


def test_no_held_out_text_says_what_to_do(tmp_path: Path) -> None:
    job = FakeJob(tmp_path, "evaluate", {"model": MODEL, "dataset": DATASET})
    job.add_input(MODEL, "model", files_of(tiny(tied=True), tmp_path / "hf"))
    job.add_input(DATASET, "dataset", {"validation.jsonl": b""})
    with pytest.raises(InvalidInput, match="larger --validation-fraction"):
        run(job.context())


@pytest.mark.attack
def test_a_changed_byte_of_the_weights_is_refused(tmp_path: Path) -> None:
    job = evaluate(tmp_path, files_of(tiny(tied=True), tmp_path / "hf"))
    file = next((tmp_path / "objects").rglob("model.safetensors"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(Tampered, match=r"model\.safetensors"):
        run(job.context())
