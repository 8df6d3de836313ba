"""Random models of every family, made by transformers, small enough to be made in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedModel

from appliance.core.families import BY_CLASS

VOCABULARY = 512
CLASSES = sorted(BY_CLASS)

# A head has 32 numbers, which the engine's kernels serve; weights are large enough that the
# likeliest token is clear.
_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = _DECODER | {"num_key_value_heads": 2}
_HEADS = _GROUPED | {"head_dim": 32}
_MIXER = {"mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}
_SLIDING = {"sliding_window": 16}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _HEADS,
    "mistral": _GROUPED | _SLIDING,
    "gemma2": _HEADS | _SLIDING | {"query_pre_attn_scalar": 32},
    "gemma3_text": _HEADS
    | _SLIDING
    | {
        "query_pre_attn_scalar": 32,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": _GROUPED,
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": 128,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 512,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt_neox": _DECODER,
    "falcon_h1": _GROUPED | _MIXER | {"mamba_d_ssm": 128, "mamba_n_heads": 4},
    "granitemoehybrid": _GROUPED
    | _MIXER
    | {
        "layer_types": ["linear_attention", "full_attention"],
        "mamba_n_heads": 8,
        "shared_intermediate_size": 256,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "position_embedding_type": "rope",
    },
    "bert": _DECODER,
    "distilbert": {
        "vocab_size": VOCABULARY,
        "dim": 128,
        "hidden_dim": 256,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
    },
    "modernbert": _DECODER
    | {
        "local_attention": 32,
        "global_attn_every_n_layers": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
}
"""Members by `model_type`; what is not here is as the class has it."""


def build(architecture: str, **changes: Any) -> PreTrainedModel:
    """A random model of a class, always the same one."""
    torch.manual_seed(0)
    family = BY_CLASS[architecture]
    config = AutoConfig.for_model(family.model_type, **CONFIGS[family.model_type] | changes)
    made: PreTrainedModel = getattr(transformers, architecture)(config)
    return made.eval()


def without_prefix(folder: Path, target: Path) -> Path:
    """A copy of a folder with the short names of the first releases, and a buffer."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    family = BY_CLASS[json.loads((folder / "config.json").read_text())["architectures"][0]]
    short = {name.removeprefix(family.prefix): tensor for name, tensor in tensors.items()}
    short["h.0.attn.bias"] = torch.ones(1, 1, 512, 512)
    save_file(short, target / "model.safetensors", {"format": "pt"})
    return target


def save(model: PreTrainedModel, folder: Path) -> Path:
    """The folder of a model, as transformers writes it, with a tokenizer of as many tokens."""
    model.save_pretrained(folder)
    words = {f"t{number}": number for number in range(VOCABULARY)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}}))
    return folder
