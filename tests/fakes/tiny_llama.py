"""A random Llama small enough to start in seconds, and what it answers by the book."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 512


def make(
    folder: Path, dtype: torch.dtype = torch.float32, tokens: int = VOCABULARY
) -> LlamaForCausalLM:
    """Saves the model as a Hugging Face folder; with a tokenizer, if that has fewer tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).to(dtype).eval()
    model.save_pretrained(folder)
    if tokens < VOCABULARY:
        tokenizer = {"model": {"vocab": {f"t{number}": number for number in range(tokens)}}}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return model


@torch.no_grad()
def greedy(
    model: LlamaForCausalLM, prompt: list[int], count: int, tokens: int = VOCABULARY
) -> list[int]:
    """The likeliest of so many tokens, `count` times over, each from the whole text before it."""
    ids = list(prompt)
    for _ in range(count):
        logits = model(torch.tensor([ids])).logits[0, -1, :tokens]
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]
