"""The kind `evaluate`: measure the perplexity of a model on held-out text.

What runs: `appliance.jobs.assess.evaluate`. Called by way of `appliance.kinds.kind_of`.
"""

from __future__ import annotations

from appliance.api.jobs.v1 import job_pb2
from appliance.core import families
from appliance.core.artifact_kinds import MODEL, REPORT, TOKENS
from appliance.core.families import FamilyUse
from appliance.core.numbers import GIB, written
from appliance.core.placement import Demand
from appliance.core.problems import Problems
from appliance.core.values import given
from appliance.kinds.kind import FLOAT, TORCH_PROCESS, Inputs, Kind, Makes, Reads

_LOGITS = 3
"""The output's values, their logarithms, and what is made of those."""


def memory(parameters: int, window: int, vocabulary: int) -> int:
    """Bytes of a rank: the model in 32-bit floats and the values of one window of tokens."""
    return TORCH_PROCESS + GIB // 2 + FLOAT * parameters + _LOGITS * FLOAT * window * vocabulary


def _check(spec: job_pb2.EvaluateSpec, inputs: Inputs, problems: Problems) -> None:
    if model := inputs.get(KIND.path("model")):
        why = families.refusal(str(model.facts.get("architecture", "")), FamilyUse.EVALUATE)
        problems.check(KIND.path("model"), holds=not why, sentence=why)
        context = int(model.facts["context_length"])
        problems.check(
            KIND.path("window"),
            holds=spec.window <= context,
            sentence=f"must be 2 to the model's context of {written(context)} tokens",
        )


def _fill(spec: job_pb2.EvaluateSpec, inputs: Inputs) -> None:
    if model := inputs.get(KIND.path("model")):
        spec.window = min(spec.window, int(model.facts["context_length"]))


def _demand(spec: job_pb2.EvaluateSpec, inputs: Inputs) -> Demand:
    facts = inputs[KIND.path("model")].facts
    window = given(spec, "window", most=int(facts["context_length"]))
    need = memory(int(facts["parameters"]), window, int(facts["vocabulary_size"]))
    # An agent of 0.1.0 would leave out the field that it does not know, and write no report.
    return Demand(1, memory_per_rank=need, new_agent=bool(spec.output_report))


KIND = Kind(
    spec=job_pb2.EvaluateSpec,
    run="appliance.jobs.assess.evaluate:run",
    modules=frozenset({"fsspec", "rfc8785", "tokenizers", "torch", "transformers"}),
    reads=(Reads("model", (MODEL,)), Reads("dataset", (TOKENS,))),
    makes=(Makes("report", "output_report", REPORT),),
    demand=_demand,
    less_memory="use a smaller window or a larger node",
    check=_check,
    fill=_fill,
)
