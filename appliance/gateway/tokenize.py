"""From a caller's words to token ids, with the tokenizer and the template of the served model.

Rules kept here:
* a template is text that somebody imported: it is rendered in a sandbox that changes nothing, and
  what it raises is an error of the request;
* the context's limit is told with the numbers, before a replica is asked;
* long texts are tokenized in a thread, so that nobody else's answer waits.

The attack: a template that reaches Python's inside. Called by `appliance.gateway.pipeline`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import InvalidInput, Unavailable
from appliance.gateway.snapshot import Route, Snapshot

logger = logging.getLogger(__name__)

LONG_TEXT = 4000
"""Characters above which a text is tokenized in a thread."""
_LARGEST_FACTOR = 1 << 31
_LARGEST_POWER = 8
_MOST_ROUNDS = 100_000
ROLES = ("system", "user", "assistant")

Message = Mapping[str, str]
Fetch = Callable[[str], Awaitable[routing_service_pb2.ServedTokenizer]]


def _raise(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


class _Sandbox(ImmutableSandboxedEnvironment):
    """Multiplies small numbers only: a repeated text or a power could fill the memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(
        self,
        context: Context,
        operator: str,
        left: Any,  # noqa: ANN401 - whatever a template has
        right: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """One of the intercepted operations. Raises SecurityError for large ones."""
        small = all(
            isinstance(value, (int, float)) and abs(value) <= _LARGEST_FACTOR
            for value in (left, right)
        )
        if not small or (operator == "**" and right > _LARGEST_POWER):
            raise SecurityError("a template may multiply small numbers only")
        return super().call_binop(context, operator, left, right)


def _limited_range() -> Callable[..., range]:
    """`range` for one rendering, whose loops may go round so often altogether."""
    left = _MOST_ROUNDS

    def limited(*bounds: int) -> range:
        nonlocal left
        made = range(*bounds)
        left -= len(made)
        if left < 0:
            raise SecurityError("the template's loops go round too often")
        return made

    return limited


def _environment() -> _Sandbox:
    """What templates of the field expect (`transformers`, chat_template_utils)."""
    # Its output becomes token ids, never a page: escaping would change the prompt.
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        extensions=["jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
    return environment


class ServedModel:
    """Tokenizer, template and end tokens of one served model version.

    Raises Unavailable when they cannot be read.
    """

    def __init__(self, served: routing_service_pb2.ServedTokenizer) -> None:
        try:
            self.tokenizer: Tokenizer = Tokenizer.from_str(served.tokenizer_json.decode())
            self._template = (
                _environment().from_string(served.chat_template) if served.chat_template else None
            )
        # The library raises nothing narrower for a tokenizer that it cannot read.
        except Exception as error:
            raise Unavailable(
                "the tokenizer or the chat template of the model cannot be read: "
                "import the model again"
            ) from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.ends = list(served.end_token_ids)
        self.vocabulary = self.tokenizer.get_vocab_size(with_added_tokens=True)
        self._bos = served.bos_token
        self._eos = served.eos_token

    async def prompt(self, text: str) -> list[int]:
        """Token ids of a plain prompt."""
        return await self._encode(text, special=True)

    async def chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation to answer. Raises InvalidInput when there is no way."""
        if not messages:
            raise InvalidInput("there are no messages", fields={"messages": "is empty"})
        for message in messages:
            if message["role"] not in ROLES:
                raise InvalidInput(
                    f"a message's role must be one of {', '.join(ROLES)}",
                    fields={"messages": "has another role"},
                )
        if self._template is None:
            raise InvalidInput(
                "this model has no chat template: send a plain prompt instead",
                fields={"messages": "the model takes plain prompts only"},
            )
        text = await asyncio.to_thread(self._render, messages)
        # The template writes the special tokens itself.
        return await self._encode(text, special=False)

    def _render(self, messages: Sequence[Message]) -> str:
        if self._template is None:
            return ""
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                bos_token=self._bos,
                eos_token=self._eos,
                range=_limited_range(),
                tools=None,
                documents=None,
            )
        # A template is a program that somebody imported: it can raise whatever Python can.
        except Exception as error:
            problem = str(error) if isinstance(error, jinja2.TemplateError) else "it fails"
            raise InvalidInput(
                f"the model's chat template does not take this conversation: {problem[:200]}",
                fields={"messages": problem[:200]},
            ) from error

    async def _encode(self, text: str, *, special: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput("the text is not valid Unicode") from error
        if len(text) < LONG_TEXT:
            return self.tokenizer.encode(text, add_special_tokens=special).ids
        encoding = await asyncio.to_thread(self.tokenizer.encode, text, add_special_tokens=special)
        return encoding.ids


@dataclass(frozen=True)
class Room:
    """What a prompt leaves of the context."""

    prompt: int
    max_tokens: int


def room(prompt: int, wanted: int, longest: int) -> Room:
    """Most tokens to answer with; `wanted` 0 means all that is left. Raises InvalidInput."""
    if wanted < 0:
        raise InvalidInput(
            "max_tokens must not be negative", fields={"max_tokens": "must not be negative"}
        )
    if prompt < 1:
        raise InvalidInput("the prompt is empty: send some text", fields={"prompt": "is empty"})
    left = longest - prompt
    if left < 1:
        raise InvalidInput(
            f"the prompt has {prompt} tokens, but prompt and answer together may have {longest}: "
            "send a shorter one",
            fields={"prompt": f"has {prompt} tokens of at most {longest - 1}"},
            prompt_tokens=prompt,
            max_sequence_length=longest,
        )
    return Room(prompt, min(wanted or left, left))


class Models:
    """Served models by route, read once each.

    Args:
        fetch: asks the control plane for the tokenizer of an endpoint.
    """

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._models: dict[tuple[str, str], asyncio.Task[ServedModel]] = {}

    def apply(self, snapshot: Snapshot) -> None:
        """Forget models that are no longer served; read those that can be asked for now."""
        served = {(route.endpoint, route.model) for route in snapshot.routes.values()}
        for key in self._models.keys() - served:
            del self._models[key]
        for route in snapshot.routes.values():
            if route.places and (route.endpoint, route.model) not in self._models:
                self._start(route)

    async def get(self, route: Route) -> ServedModel:
        """The model of a route; one read for all who wait. Raises ApplianceError."""
        key = (route.endpoint, route.model)
        task = self._models.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._start(route)
        # Shielded: whoever leaves does not take it from the others.
        return await asyncio.shield(task)

    def _start(self, route: Route) -> asyncio.Task[ServedModel]:
        task = asyncio.create_task(self._read(route.endpoint))
        self._models[route.endpoint, route.model] = task
        task.add_done_callback(_note)
        return task

    async def _read(self, endpoint: str) -> ServedModel:
        served = await self._fetch(endpoint)
        return await asyncio.to_thread(ServedModel, served)


def _note(task: asyncio.Task[ServedModel]) -> None:
    """Log a failed read: nobody may be waiting for it yet; the next call reads again."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("a served model cannot be read: %s", error)
