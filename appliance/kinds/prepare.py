"""The kind `prepare`: clean text and turn it into tokens, and make the tokenizer.

What runs: `appliance.jobs.prepare`. Called by way of `appliance.kinds.kind_of`.
"""

from __future__ import annotations

from appliance.api.jobs.v1 import job_pb2
from appliance.core.artifact_kinds import TEXT, TOKENIZER, TOKENS
from appliance.core.numbers import GIB
from appliance.core.placement import Demand
from appliance.core.problems import Problems
from appliance.kinds.kind import Inputs, Kind, Makes, Reads

MAX_DATASETS = 100


def memory(text_bytes: int) -> int:
    """Bytes of a rank, whose signatures and tokenizer counts grow with the text.

    Two documents of 3 MiB that are compared with each other, of a script whose letters are words,
    take 800 MiB: more than all else.
    """
    return GIB + 6 * text_bytes


def _check(spec: job_pb2.PrepareSpec, inputs: Inputs, problems: Problems) -> None:
    del inputs
    at, count = KIND.path("datasets"), len(spec.datasets)
    problems.check(
        at,
        holds=0 < count <= MAX_DATASETS,
        sentence=f"must name 1 to {MAX_DATASETS} versions",
    )
    problems.check(
        at,
        holds=len(set(spec.datasets)) == count,
        sentence="names the same version twice",
    )


def _demand(spec: job_pb2.PrepareSpec, inputs: Inputs) -> Demand:
    del spec
    return Demand(1, memory_per_rank=memory(sum(item.size_bytes for item in inputs.values())))


KIND = Kind(
    spec=job_pb2.PrepareSpec,
    run="appliance.jobs.prepare.job:run",
    modules=frozenset({"fsspec", "numpy", "re2", "rensa", "rfc8785", "tokenizers", "torch"}),
    reads=(Reads("datasets", (TEXT,)),),
    makes=(
        Makes("dataset", "output_dataset", TOKENS),
        Makes("tokenizer", "output_tokenizer", TOKENIZER),
    ),
    demand=_demand,
    less_memory="name fewer or smaller datasets",
    check=_check,
    uses_gpu=False,
)
