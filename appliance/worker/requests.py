"""What a gateway may ask of the engine: a `Submit` checked and made definite.

Rules kept here: what the engine would choke on never reaches it, where it could end all answers;
what is refused is refused with a sentence for the caller. Called by `appliance.worker.service`;
pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.api.inference.v1 import generation_pb2, worker_service_pb2
from appliance.core.errors import InvalidInput
from appliance.wire.sampling import check_choice

MAX_END_TOKENS = 64


@dataclass(frozen=True)
class EngineLimits:
    """What the engine can.

    Attributes:
        sequence_length: tokens of a prompt with its answer.
        vocabulary: every token id is below it.
        slots: answers in one step; more wait. 0: not known.
    """

    sequence_length: int
    vocabulary: int
    slots: int = 0


@dataclass(frozen=True)
class EngineRequest:
    """One answer to make.

    Attributes:
        prompt: token ids, at least one.
        max_tokens: most tokens to answer with, at least one and what the context leaves at most.
        temperature: 0 takes the likeliest token always.
        top_p: share of the probability to choose from, in (0, 1]; a share of 0 that was asked for
            holds the likeliest token alone, which is temperature 0.
        top_k: tokens to choose from; 0: all.
        seed: of the choice; None: random.
        end_token_ids: tokens that end the answer, which they are part of.
    """

    prompt: list[int]
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    end_token_ids: list[int]


def request_of(submit: worker_service_pb2.Submit, limits: EngineLimits) -> EngineRequest:
    """The request of a message. Raises InvalidInput with a sentence for the caller."""
    prompt = list(submit.prompt_token_ids)
    ends = list(submit.end_token_ids)
    sampling = submit.sampling
    left = limits.sequence_length - len(prompt)
    if not prompt:
        raise InvalidInput("the prompt is empty: send at least one token")
    if left < 1:
        raise InvalidInput(
            f"the prompt has {len(prompt)} tokens, but prompt and answer together may have "
            f"{limits.sequence_length}: send a shorter one"
        )
    if max(prompt) >= limits.vocabulary or (ends and max(ends) >= limits.vocabulary):
        raise InvalidInput(
            f"a token id is not in the model's vocabulary of {limits.vocabulary}: the prompt was "
            "made with another tokenizer"
        )
    if len(ends) > MAX_END_TOKENS:
        raise InvalidInput(f"there are more than {MAX_END_TOKENS} end tokens")
    _check_sampling(sampling)
    nothing_to_choose = sampling.HasField("top_p") and sampling.top_p == 0
    return EngineRequest(
        prompt=prompt,
        max_tokens=min(sampling.max_tokens, left) if sampling.HasField("max_tokens") else left,
        temperature=0.0 if nothing_to_choose else sampling.temperature,
        top_p=sampling.top_p or 1.0,
        top_k=sampling.top_k,
        seed=sampling.seed if sampling.HasField("seed") else None,
        end_token_ids=[] if sampling.ignore_end else ends,
    )


def _check_sampling(sampling: generation_pb2.Sampling) -> None:
    check_choice(sampling)
    if sampling.stop:
        raise InvalidInput("a worker does not look for stop texts: the gateway does")
