"""Run an evaluate job: the perplexity of a model on held-out text.

The text is `validation.jsonl` of a prepared dataset, which training never sees, in the model's own
tokens. It is cut into windows that do not overlap; in each, every token but the first is predicted
from those before it. Perplexity is exp of the mean negative log-likelihood (Jelinek et al. 1977);
bits per byte compare models of different tokenizers.

Weights come from sealed files into memory. A W8A8 model is measured as it is served: 8-bit weights
times their scales, and activations rounded to 8 bits for each token. Numbers are 32-bit floats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import nn

from appliance.core import families
from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.core.values import given
from appliance.crypto.artifacts import ArtifactReader
from appliance.jobs.assess.evaluation_report import SLOT, Course, report_of
from appliance.jobs.runtime import weights
from appliance.jobs.runtime.context import Context
from appliance.jobs.runtime.reports import write_report
from appliance.jobs.runtime.weights import Weights

HELD_OUT = "validation.jsonl"
SCALE = "_scale"


@dataclass
class LossTotal:
    """Sums over windows."""

    likelihood: float = 0.0
    """Negative log-likelihood, in nats."""
    tokens: int = 0
    """Tokens that were predicted."""


def run(context: Context) -> None:
    """Measure the model of an `EvaluateSpec`; the numbers are the job's result, and its report.

    Raises:
        InvalidInput: there is no held-out text, or too little.
        FailedPrecondition: the model's answers are no numbers.
        Tampered: an input is not intact.
    """
    spec = context.spec
    source, dataset = context.input(spec.model), context.input(spec.dataset)
    config = source.read_json("config.json")
    window = min(given(spec, "window"), int(config["max_position_embeddings"]))
    tokenizer = Tokenizer.from_str(source.read_bytes("tokenizer.json").decode())
    # Text that spells a special token is text.
    tokenizer.encode_special_tokens = True
    ids, size = held_out_tokens(dataset, tokenizer, given(spec, "max_tokens"))
    context.report.progress(0, len(ids), "loading weights")
    model = load(source, config).to(context.device)
    total, course = LossTotal(), Course()
    for begin in range(0, len(ids), window):
        context.fence()
        piece = torch.tensor(ids[begin : begin + window], device=context.device)
        if len(piece) > 1:
            total.likelihood += negative_log_likelihood(model, piece)
            total.tokens += len(piece) - 1
        nll = total.likelihood / max(total.tokens, 1)
        measured = perplexity(nll)
        course.add(begin + len(piece), measured)
        context.report.progress(begin + len(piece), len(ids), "measuring", perplexity=measured)
    mean = total.likelihood / total.tokens
    if not math.isfinite(perplexity(mean)):
        raise FailedPrecondition(
            f"The model's loss is {mean:.6g} nats per token, for which no perplexity can be written"
            " down: its weights are broken. Evaluate the version it was made from."
        )
    result = {
        "perplexity": perplexity(mean),
        "nll_per_token": mean,
        "tokens": total.tokens,
        "bits_per_byte": mean * len(ids) / (size * math.log(2)),
    }
    if spec.output_report:
        write_report(context.output(SLOT), *report_of(spec, window, result, course))
    context.report.result(result)


def perplexity(nll: float) -> float:
    """What a loss in nats per token is as perplexity; infinite where it is too large a number."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def held_out_tokens(
    dataset: ArtifactReader, tokenizer: Tokenizer, most: int
) -> tuple[list[int], int]:
    """The first tokens of the held-out text, at most `most`, and the bytes of text they stand for.

    Raises:
        InvalidInput: the dataset has no held-out text.
    """
    if HELD_OUT not in dataset.files():
        raise InvalidInput("the dataset has no held-out text: name a version made by a prepare job")
    ids: list[int] = []
    size = 0
    for text in _texts(dataset):
        encoding = tokenizer.encode(text, add_special_tokens=False)
        taken = encoding.ids[: most - len(ids)]
        if taken:
            ids += taken
            size += len(text[: encoding.offsets[len(taken) - 1][1]].encode())
        if len(ids) >= most:
            break
    if len(ids) < 2:
        raise InvalidInput(
            "the held-out text is empty: prepare the dataset with a larger --validation-fraction"
        )
    return ids, size


def _texts(dataset: ArtifactReader) -> Iterator[str]:
    with dataset.open(HELD_OUT) as lines:
        for line in lines:
            yield str(json.loads(line)["text"])


@torch.inference_mode()
def negative_log_likelihood(model: nn.Module, ids: torch.Tensor) -> float:
    """Sum over ids[1:] of -log p(id | ids before it), in nats; `ids` is [length]."""
    logits = model(input_ids=ids[None]).logits[0]
    return float(nn.functional.cross_entropy(logits[:-1].float(), ids[1:], reduction="sum"))


def load(source: ArtifactReader, config: dict[str, Any]) -> nn.Module:
    """The model with its weights in memory, in 32-bit floats on the CPU, ready to be asked.

    Raises:
        InvalidInput: the weights do not fit the configuration.
    """
    model = weights.unfilled(config)
    family = families.BY_CLASS[config["architectures"][0]]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    missing = set(dict(model.named_parameters()))
    pending: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for stored, tensor in Weights(source).tensors():
            name = family.renamed.get(stored, stored)
            if name not in parameters and family.prefix + name in parameters:
                name = family.prefix + name
            if name.endswith(SCALE) or tensor.dtype == torch.int8:
                _pair(pending, parameters, name, tensor, missing)
            elif name in parameters:
                parameters[name].copy_(tensor)
                missing.discard(name)
    if missing or pending:
        raise InvalidInput(
            f"the weights do not fit config.json: {min(missing | set(pending))} has no value"
        )
    if "quantization_config" in config:
        _round_activations(model, config)
    return model.eval()


def _pair(
    pending: dict[str, torch.Tensor],
    parameters: dict[str, nn.Parameter],
    name: str,
    tensor: torch.Tensor,
    missing: set[str],
) -> None:
    """Multiply 8-bit weights with their scales once both have come, in either order."""
    layer = name.removesuffix(SCALE)
    other = pending.pop(layer, None)
    if other is None:
        pending[layer] = tensor
        return
    parameters[layer].copy_(other.float() * tensor.float())
    missing.discard(layer)


def _round_activations(model: nn.Module, config: dict[str, Any]) -> None:
    quantized = weights.linear_names(config)
    for name, module in model.named_modules():
        if name in quantized:
            module.register_forward_pre_hook(
                lambda _, inputs: (round_to_int8(cast("torch.Tensor", inputs[0])),)
            )


def round_to_int8(values: torch.Tensor) -> torch.Tensor:
    """Values as 8-bit integers times a scale of each token (last axis), as int8 kernels do."""
    scale = values.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    return (values / scale).round().clamp(-128, 127) * scale
