"""Questions to served models, and whole answers to them. Called by both clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.api.inference.v1 import generation_pb2 as generation
from appliance.api.inference.v1 import inference_service_pb2 as inference
from appliance.client.requests import Requests
from appliance.core.errors import InvalidInput

Message = tuple[str, str] | Mapping[str, str]
"""One message of a conversation: its role and what is said, `("user", "Hello")`, or a mapping of
`role` and `content`."""


@dataclass(frozen=True)
class Answer:
    """A whole answer.

    Attributes:
        text: what was answered.
        finish_reason: `stop`, or `length` when `max_tokens` or the context was used up.
        prompt_tokens: of the question.
        completion_tokens: of the answer.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int

    def __str__(self) -> str:
        """The text."""
        return self.text


class Collected:
    """Puts an answer together from its pieces."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._last = inference.GenerateResponse()

    def add(self, piece: inference.GenerateResponse) -> None:
        """The next piece."""
        self._texts.append(piece.text)
        self._last = piece

    def answer(self) -> Answer:
        """All of it."""
        reason = generation.FinishReason.Name(self._last.finish_reason)
        return Answer(
            "".join(self._texts),
            reason.removeprefix("FINISH_REASON_").lower(),
            self._last.totals.prompt_tokens,
            self._last.totals.completion_tokens,
        )


def asked(
    requests: Requests,
    endpoint: str,
    question: str | None,
    messages: Sequence[Message] | None,
    prompt: str | None,
    system: str,
    sampling: Mapping[str, Any],
) -> dict[str, Any]:
    """Fields of the request for one answer. Raises InvalidInput unless one thing is asked."""
    if [question, messages, prompt].count(None) != 2:
        raise InvalidInput("give one of a question, `messages` and `prompt`")
    if system and question is None:
        raise InvalidInput("system: goes before a question; put it into `messages` yourself")
    fields: dict[str, Any] = {
        "endpoint": requests.name("endpoint", endpoint),
        "sampling": {name: value for name, value in sampling.items() if value is not None},
    }
    if prompt is not None:
        return fields | {"prompt": prompt}
    said = [("system", system)] if system else []
    conversation = messages if messages is not None else [*said, ("user", str(question))]
    return fields | {"chat": {"messages": [_message(each) for each in conversation]}}


def _message(message: Message) -> dict[str, str]:
    if isinstance(message, Mapping):
        return dict(message)
    role, content = message
    return {"role": role, "content": content}
