"""The kind `quantize`: make a smaller version of a model.

What runs: `appliance.jobs.compress.quantize`. Called by way of `appliance.kinds.kind_of`.
"""

from __future__ import annotations

from appliance.api.jobs.v1 import job_pb2
from appliance.core import families
from appliance.core.artifact_kinds import MODEL
from appliance.core.families import FamilyUse
from appliance.core.numbers import MIB
from appliance.core.placement import Demand
from appliance.core.problems import Problems
from appliance.kinds.kind import FLOAT, TORCH_PROCESS, Inputs, Kind, Makes, Reads


def memory(largest_tensor: int) -> int:
    """Bytes of a rank, which holds one tensor at a time in 32-bit floats, thrice.

    `largest_tensor` in numbers.
    """
    return TORCH_PROCESS + 256 * MIB + 3 * FLOAT * largest_tensor


def _check(spec: job_pb2.QuantizeSpec, inputs: Inputs, problems: Problems) -> None:
    problems.check(
        KIND.path("scheme"),
        holds=spec.scheme == job_pb2.QuantizeSpec.SCHEME_W8A8_INT8,
        sentence="must be SCHEME_W8A8_INT8",
    )
    at = KIND.path("model")
    if item := inputs.get(at):
        why = families.refusal(str(item.facts.get("architecture", "")), FamilyUse.QUANTIZE)
        problems.check(at, holds=not why, sentence=why)
        problems.check(
            at,
            holds=not str(item.facts.get("format", "")).startswith("w8"),
            sentence="is quantized already; name the version it was made from",
        )


def _demand(spec: job_pb2.QuantizeSpec, inputs: Inputs) -> Demand:
    del spec
    largest = int(inputs[KIND.path("model")].facts.get("largest_tensor", 0))
    return Demand(1, memory_per_rank=memory(largest))


KIND = Kind(
    spec=job_pb2.QuantizeSpec,
    run="appliance.jobs.compress.quantize:run",
    modules=frozenset({"compressed_tensors", "fsspec", "rfc8785", "torch", "transformers"}),
    reads=(Reads("model", (MODEL,)),),
    makes=(Makes("model", "output_model", MODEL),),
    demand=_demand,
    less_memory="use a larger node",
    check=_check,
    uses_gpu=False,
)
