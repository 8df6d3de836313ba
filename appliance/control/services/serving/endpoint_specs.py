"""Whether the spec of an endpoint can work with the model that it serves. Pure.

Called by `services.serving.endpoints`, before anything of an endpoint is stored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.api.serving.v1 import endpoint_pb2
from appliance.core import families
from appliance.core.families import FamilyUse
from appliance.core.numbers import written
from appliance.core.problems import Problems
from appliance.core.values import given

HEAD_WIDTHS = frozenset({32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512})
"""Widths of an attention head that the engine's kernels serve on every kind of device."""
CHANGEABLE = (
    "model",
    "replicas",
    "tensor_parallel",
    "max_sequence_length",
    "cache_bytes",
    "allow_downtime",
)
"""Fields of an endpoint that can be changed."""
DIVIDED = ("attention_heads", "key_value_heads", "intermediate_size", "vocabulary_size")
"""Sizes of a model that tensor parallel splits evenly."""


@dataclass(frozen=True)
class EndpointSpec:
    """What is stored of a spec, defaults filled in; lengths in tokens."""

    replicas: int
    tensor_parallel: int
    max_sequence_length: int
    cache_bytes: int
    allow_downtime: bool = False


def merged(
    endpoint: endpoint_pb2.Endpoint, asked: endpoint_pb2.Endpoint, changed: Collection[str]
) -> endpoint_pb2.Endpoint:
    """An endpoint with the fields that change; one that is not set gets its default again."""
    made = endpoint_pb2.Endpoint()
    for field in CHANGEABLE:
        source = asked if field in changed else endpoint
        if source.DESCRIPTOR.fields_by_name[field].has_presence and not source.HasField(field):
            continue
        setattr(made, field, getattr(source, field))
    return made


def check(
    endpoint: endpoint_pb2.Endpoint, facts: Mapping[str, Any], problems: Problems
) -> EndpointSpec:
    """The spec with its defaults.

    Args:
        endpoint: as it was asked for.
        facts: of the model version that it serves; empty when nothing is known.
        problems: gets a sentence for each field that is wrong.

    Raises:
        InvalidInput: names every field that is wrong, also those already in `problems`.
    """
    problems.take(endpoint, "endpoint")
    problems.raise_if_any()
    spec = EndpointSpec(
        replicas=given(endpoint, "replicas"),
        tensor_parallel=given(endpoint, "tensor_parallel"),
        max_sequence_length=_length(endpoint, facts, problems),
        cache_bytes=given(endpoint, "cache_bytes"),
        allow_downtime=endpoint.allow_downtime,
    )
    _check_degree(spec.tensor_parallel, facts, problems)
    _check_family(spec.tensor_parallel, facts, problems)
    _check_heads(facts, problems)
    problems.raise_if_any()
    return spec


def _length(endpoint: endpoint_pb2.Endpoint, facts: Mapping[str, Any], problems: Problems) -> int:
    member = "max_sequence_length"
    context = int(facts.get("context_length", given(endpoint_pb2.Endpoint(), member)))
    length: int = given(endpoint, member, most=context)
    problems.check(
        f"endpoint.{member}",
        holds=2 <= length <= context,
        sentence=f"must be 2 to the model's context of {written(context)} tokens",
    )
    return length


def _check_degree(degree: int, facts: Mapping[str, Any], problems: Problems) -> None:
    for member in DIVIDED:
        size = int(facts.get(member, degree))
        problems.check(
            "endpoint.tensor_parallel",
            holds=size % degree == 0,
            sentence=f"is {degree}, which does not divide the {member} of {size}: use a divisor",
        )


def _check_family(degree: int, facts: Mapping[str, Any], problems: Problems) -> None:
    architecture = str(facts.get("architecture", ""))
    why = families.refusal(architecture, FamilyUse.TEXT)
    problems.check("endpoint.model", holds=not why, sentence=why)
    spread = families.refusal(architecture, FamilyUse.SPREAD)
    problems.check(
        "endpoint.tensor_parallel",
        holds=degree == 1 or not spread,
        sentence=f"is {degree}, but the model {spread}",
    )


def _check_heads(facts: Mapping[str, Any], problems: Problems) -> None:
    head = facts.get("head_dim")
    problems.check(
        "endpoint.model",
        holds=head is None or head in HEAD_WIDTHS,
        sentence=f"has attention heads of width {head}, which the engine cannot serve: train "
        f"with hidden_size / attention_heads of {', '.join(map(str, sorted(HEAD_WIDTHS)))}",
    )
