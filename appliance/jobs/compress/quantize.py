"""Run a quantize job: weights to 8-bit integers, in the form that vLLM serves.

W8A8 int8: each row of a linear layer gets a scale and 8-bit weights, rounded to nearest;
activations are brought to 8 bits for each token while serving. Scale and rounding are those of the
compressed-tensors library, the files its `int-quantized` format; embeddings, norms and the output
projection stay as they are. The model passes through memory one tensor at a time.

Source of the scheme: Kurtic et al. 2024, "Give Me BF16 or Give Me Death?" (W8A8-INT).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
)
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams

from appliance.core.errors import InvalidInput
from appliance.core.model_files import INDEX
from appliance.jobs.runtime import weights
from appliance.jobs.runtime.context import Context
from appliance.jobs.runtime.weights import TensorPlan, Weights

WEIGHTS = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel")
ACTIVATIONS = QuantizationArgs(
    num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True
)


@dataclass
class Errors:
    """Relative errors of the layers: Frobenius norm of the difference over that of the weight."""

    found: list[float] = field(default_factory=list)

    def add(self, weight: torch.Tensor, restored: torch.Tensor) -> None:
        """Add one layer."""
        self.found.append(float((restored - weight).norm() / weight.norm().clamp_min(1e-12)))


def run(context: Context) -> None:
    """Quantize the model of a `QuantizeSpec` into the output `model`.

    Raises:
        InvalidInput: the model is quantized already, or has no linear layers.
        Tampered: an input is not intact.
    """
    model = context.input(context.spec.model)
    config = model.read_json("config.json")
    if "quantization_config" in config:
        raise InvalidInput("the model is quantized already: name the version it was made from")
    source = Weights(model)
    layers = {f"{name}.weight" for name in weights.linear_names(config)}
    plans = source.plans()
    if not layers & {plan.name for plan in plans}:
        raise InvalidInput("the model has no linear layers of known names to quantize")
    planned = list(_plan(plans, layers))
    output, errors = context.output("model"), Errors()
    weights.write(output, planned, _quantized(context, source, layers, errors))
    config["quantization_config"] = quantization_config()
    output.write_json("config.json", config)
    for file in model.files():
        if file.endswith((".safetensors", INDEX)) or file == "config.json":
            continue
        with output.create(file) as sink:
            sink.write(model.read_bytes(file))
    output.finish()
    context.report.result(
        {
            "bytes_before": sum(plan.size for plan in plans),
            "bytes_after": sum(plan.size for plan in planned),
            "layers": len(errors.found),
            "mean_relative_error": sum(errors.found) / len(errors.found),
            "largest_relative_error": max(errors.found),
        }
    )


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """8-bit integers and the scale of each row.

    Args:
        weight: [rows, columns], floating point.

    Returns:
        int8 [rows, columns], and float32 [rows, 1] with weight ~ integers * scale.
    """
    rows = weight.float()
    scale, zero = calculate_qparams(
        rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True), WEIGHTS
    )
    integers: torch.Tensor = quantize(rows, scale, zero, WEIGHTS, dtype=torch.int8)
    return integers, scale


def quantization_config() -> dict[str, Any]:
    """The member of `config.json` that tells vLLM how the weights are stored."""
    scheme = QuantizationScheme(
        targets=["Linear"], weights=WEIGHTS, input_activations=ACTIVATIONS, format="int-quantized"
    )
    found: dict[str, Any] = QuantizationConfig(
        config_groups={"group_0": scheme},
        ignore=["lm_head"],
        format="int-quantized",
        quantization_status=QuantizationStatus.COMPRESSED,
    ).model_dump(mode="json")
    return found


def _plan(plans: list[TensorPlan], layers: set[str]) -> Iterator[TensorPlan]:
    for plan in plans:
        if plan.name in layers:
            yield TensorPlan(plan.name, torch.int8, plan.shape)
            yield TensorPlan(f"{plan.name}_scale", plan.dtype, (plan.shape[0], 1))
        else:
            yield plan


def _quantized(
    context: Context, source: Weights, layers: set[str], errors: Errors
) -> Iterator[torch.Tensor]:
    total = len(layers)
    for name, tensor in source.tensors():
        if name not in layers:
            yield tensor
            continue
        context.fence()
        integers, scale = quantize_rows(tensor)
        stored = scale.to(tensor.dtype)
        errors.add(tensor.float(), integers.float() * stored.float())
        context.report.progress(len(errors.found), total, "rounding layers")
        yield integers
        yield stored
