"""From the body of an OpenAI-compatible request to a question; what is not served is said so.

Rules kept here: a field that would change the answer and is not supported is refused with its name,
never ignored; a field that changes nothing here is allowed, as clients send it; every text is text
and not longer than what it is for. Pure. Called by `appliance.gateway.openai`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.api.inference.v1 import generation_pb2
from appliance.core.errors import InvalidInput
from appliance.core.numbers import span
from appliance.core.strict_json import plain, read_object
from appliance.gateway.questions import Question
from appliance.wire.sampling import MAX_SEED

_SHORT = re.compile(r"([^/]+)/([^/]+)")
_MAX_TOKENS = (1 << 31) - 1

# What a client may send that changes nothing here: whose call it is, how it is stored or billed.
_WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
# Values that say "no" to what is not supported.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False, 0),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
COMMON = frozenset(
    {
        "ignore_eos",
        "max_tokens",
        "model",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "top_k",
        "top_p",
    }
)
# Characters of texts that are names or labels, not prompts; as that API has them where it says so.
_LONGEST: Mapping[str, int] = {
    "model": 200,
    "prompt_cache_key": 512,
    "safety_identifier": 512,
    "user": 512,
}
_MAX_METADATA, _MAX_METADATA_KEY, _MAX_METADATA_VALUE = 16, 64, 512
_CHAT = COMMON | {"messages", "max_completion_tokens"}
_COMPLETION = COMMON | {"prompt"}


@dataclass(frozen=True)
class OpenAiRequest:
    """One request of either kind.

    Attributes:
        model: as the caller wrote it.
        stream: whether the answer comes in pieces; `include_usage`: with a last piece of numbers.
    """

    model: str
    question: Question
    stream: bool
    include_usage: bool


def endpoint_of(model: str) -> str:
    """Resource name of an endpoint from a model's name: itself, or its short form `p/e`."""
    short = _SHORT.fullmatch(model)
    return f"projects/{short[1]}/endpoints/{short[2]}" if short else model


def document(body: bytes) -> dict[str, Any]:
    """The JSON object in a body, whose short texts are short. Raises InvalidInput."""
    value = read_object("the body", body)
    for field, longest in _LONGEST.items():
        text = value.get(field)
        if isinstance(text, str) and len(text) > longest:
            raise _wrong(field, f"may have {longest} characters")
    metadata = value.get("metadata")
    if isinstance(metadata, dict):
        _check_metadata(metadata)
    return value


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    if len(metadata) > _MAX_METADATA:
        raise _wrong("metadata", f"may have {_MAX_METADATA} entries")
    for key, text in metadata.items():
        if len(key) > _MAX_METADATA_KEY or (
            isinstance(text, str) and len(text) > _MAX_METADATA_VALUE
        ):
            raise _wrong(
                f"metadata.{plain(key)}",
                f"may have {_MAX_METADATA_KEY} characters, its value {_MAX_METADATA_VALUE}",
            )


def model_of(body: Mapping[str, Any]) -> str:
    """The model a body names. Raises InvalidInput."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise _wrong("model", "must be the name of an endpoint, such as project/endpoint")
    return model


def chat(body: Mapping[str, Any]) -> OpenAiRequest:
    """A request of `/v1/chat/completions`. Raises InvalidInput naming the field."""
    _check_known(body, _CHAT)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "must be a list of at least one message")
    parsed = [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
    most = "max_completion_tokens" if body.get("max_completion_tokens") is not None else ""
    return _request(body, Question(_sampling(body, most or "max_tokens"), messages=parsed))


def completion(body: Mapping[str, Any]) -> OpenAiRequest:
    """A request of `/v1/completions`. Raises InvalidInput naming the field."""
    _check_known(body, _COMPLETION)
    # The API's own default; a chat answers as long as the context allows.
    most = 16 if body.get("max_tokens") is None else body["max_tokens"]
    sampling = _sampling({**body, "max_tokens": most}, "max_tokens")
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return _request(body, Question(sampling, text=prompt))
    if isinstance(prompt, list) and set(map(type, prompt)) == {int}:
        return _request(body, Question(sampling, tokens=prompt))
    raise _wrong("prompt", "must be one text or one list of token ids")


def _wrong(field: str, rule: str) -> InvalidInput:
    return InvalidInput(f"{field} {rule}", fields={field: rule})


def _check_known(body: Mapping[str, Any], known: frozenset[str]) -> None:
    for field, value in body.items():
        if field in known or field in _WITHOUT_EFFECT or value is None:
            continue
        if field not in UNSUPPORTED:
            raise _wrong(plain(field), "is not a field of this request")
        if not any(_equal(value, harmless) for harmless in UNSUPPORTED[field]):
            raise _wrong(field, "is not supported here: leave it out")


def _equal(value: object, harmless: object) -> bool:
    # True equals 1 in Python, and `n: true` is no number.
    return value == harmless and isinstance(value, bool) == isinstance(harmless, bool)


def _message(message: object, at: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise _wrong(at, "must be an object with role and content")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise _wrong(f"{at}.role", "must be system, user or assistant")
    for field in ("tool_calls", "function_call", "audio", "tool_call_id"):
        if message.get(field):
            raise _wrong(f"{at}.{field}", "is not supported here: leave it out")
    if isinstance(content, list):
        content = "".join(_part(part, f"{at}.content[{i}]") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise _wrong(f"{at}.content", "must be text")
    # The API's newer word for the same role.
    return {"role": "system" if role == "developer" else role, "content": content}


def _part(part: object, at: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise _wrong(at, "is not supported here: send parts of type text only")


def _sampling(body: Mapping[str, Any], most: str) -> generation_pb2.Sampling:
    sampling = generation_pb2.Sampling(
        max_tokens=_whole(body, most, 1, _MAX_TOKENS),
        temperature=_number(body, "temperature", 1.0),
        top_p=_number(body, "top_p", 1.0),
        top_k=max(0, _whole(body, "top_k", -1, _MAX_TOKENS) or 0),
        stop=_stops(body.get("stop")),
        ignore_end=_flag(body, "ignore_eos"),
    )
    seed = _whole(body, "seed", -MAX_SEED, MAX_SEED)
    if seed is not None:
        sampling.seed = seed
    return sampling


def _whole(body: Mapping[str, Any], field: str, least: int, most: int) -> int | None:
    value = body.get(field)
    if value is None:
        return None
    if type(value) is not int or not least <= value <= most:
        raise _wrong(field, f"must be a whole number, {span(least, most)}")
    return value


def _number(body: Mapping[str, Any], field: str, default: float) -> float:
    value = body.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > _MAX_TOKENS:
        raise _wrong(field, "must be a number")
    return float(value)


def _flag(body: Mapping[str, Any], field: str) -> bool:
    value = body.get(field)
    if value is not None and not isinstance(value, bool):
        raise _wrong(field, "must be true or false")
    return bool(value)


def _stops(value: object) -> list[str]:
    stops = [value] if isinstance(value, str) else value if value is not None else []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise _wrong("stop", "must be a text or a list of texts")
    return stops


def _request(body: Mapping[str, Any], question: Question) -> OpenAiRequest:
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise _wrong("stream_options", "must be an object")
    return OpenAiRequest(
        model=model_of(body),
        question=question,
        stream=_flag(body, "stream"),
        include_usage=_flag(options or {}, "include_usage"),
    )


Parse = Callable[[Mapping[str, Any]], OpenAiRequest]
