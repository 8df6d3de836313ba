"""A model folder in the Hugging Face layout, small enough to be written by hand, without torch."""

from __future__ import annotations

import json
import math
from typing import Any

from appliance.core.model_config import check_config

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
}
# 64*16 embeddings; per layer 16*16*2 (q, o) + 8*16*2 (k, v) + 3*16*32 + 2*16; final norm 16.
PARAMETERS = 64 * 16 + 2 * (2 * 256 + 2 * 128 + 3 * 512 + 32) + 16
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def safetensors(tensors: dict[str, tuple[int, ...]], **changes: Any) -> bytes:
    """A file of BF16 zeros; `changes` replace entries of the header."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in tensors.items():
        size = math.prod(shape) * 2
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    header |= changes
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


def files(**config: Any) -> dict[str, bytes]:
    """The files of a whole model; `config` replaces members of its configuration."""
    settings = CONFIG | config
    return {
        "config.json": json.dumps(settings).encode(),
        "generation_config.json": json.dumps({"eos_token_id": [2, 7]}).encode(),
        "tokenizer.json": json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}).encode(),
        "tokenizer_config.json": json.dumps(
            {"chat_template": TEMPLATE, "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
        ).encode(),
        "model.safetensors": safetensors(dict(check_config(CONFIG).shapes)),
    }
