"""From a caller's words to token ids, with the tokenizer and the template of the served model.

Rules kept here:
* what a caller writes becomes ordinary tokens, whatever it spells; control tokens are those that
  the template writes (`appliance.gateway.vocabulary`, `appliance.gateway.rendering`);
* the context's limit is told with the numbers, before a replica is asked;
* templates and long texts have threads, so that nobody else's answer waits.

The attacks: content that spells control tokens; prompts that stop the gateway. Called by
`appliance.gateway.questions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import InvalidInput, Unavailable
from appliance.gateway import vocabulary
from appliance.gateway.encode import Encoder, too_long
from appliance.gateway.rendering import ChatTemplate, Message, Renderers
from appliance.gateway.text import Decoding
from appliance.gateway.turns import ANYBODY, Asker, Threads

SHORT_TEXT = 512
"""Characters up to which a text is tokenized at once: a thread would take longer."""
LONG_TEXT = 16_384
"""Characters above which a prompt is a long one."""
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Desk:
    """Where prompts are prepared: threads, and processes for templates."""

    threads: Threads
    renderers: Renderers

    @classmethod
    def new(cls) -> Desk:
        """One of its own."""
        return cls(Threads(), Renderers())

    def close(self) -> None:
        """Prepare nothing more."""
        self.threads.close()
        self.renderers.close()


class ServedModel:
    """Tokenizer, template and end tokens of one served model version.

    Raises Unavailable when they cannot be read.
    """

    def __init__(self, served: routing_service_pb2.ServedTokenizer, desk: Desk) -> None:
        self._threads = desk.threads
        self.ends = list(served.end_token_ids)
        sides = served.bos_token, served.eos_token
        try:
            known = vocabulary.read(
                served.tokenizer_json.decode(), served.chat_template, sides, self.ends
            )
            self._encoder = Encoder(known)
            self.controls = known.controls
            # Beside those that the model's configuration names, as vLLM does.
            eos = (c.id for c in known.controls if c.text == served.eos_token)
            self.ends += [number for number in eos if number not in self.ends]
            self.decoding = Decoding(self._encoder.tokenizer, known.controls)
            self._template = (
                ChatTemplate(desk.renderers, served.chat_template, known.controls, *sides)
                if served.chat_template
                else None
            )
        except Unavailable:
            raise
        # The library raises nothing narrower for a tokenizer that it cannot read.
        except Exception as error:
            raise Unavailable(
                "the tokenizer or the chat template of the model cannot be read: "
                "import the model again"
            ) from error
        self.vocabulary = known.size

    async def prompt(self, text: str, most: int, asker: Asker = ANYBODY) -> list[int]:
        """Token ids of a plain prompt.

        Args:
            text: of any length.
            most: tokens that prompt and answer may have together.
            asker: takes turns with others.

        Raises ContextExceeded, InvalidInput.
        """
        if len(text) <= SHORT_TEXT:
            return self._encoder.encode(text, most, special=True)
        return await self._encode(text, most, asker, special=True)

    async def chat(
        self, messages: Sequence[Message], most: int, asker: Asker = ANYBODY
    ) -> list[int]:
        """Token ids of a conversation to answer; arguments and errors as for `prompt`."""
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
        text = await self._threads.render(asker, self._template.render, messages)
        # The template writes the special tokens itself.
        return await self._encode(text, most, asker, special=False)

    async def _encode(self, text: str, most: int, asker: Asker, *, special: bool) -> list[int]:
        run = self._threads.run_long if len(text) > LONG_TEXT else self._threads.run
        return await run(asker, self._encoder.encode, text, most, special=special)


@dataclass(frozen=True)
class ContextRoom:
    """What a prompt leaves of the context."""

    prompt: int
    max_tokens: int


def room(prompt: int, wanted: int | None, longest: int) -> ContextRoom:
    """Most tokens to answer with; `wanted` None means all that is left.

    Raises ContextExceeded; InvalidInput for an empty prompt.
    """
    if prompt < 1:
        raise InvalidInput("the prompt is empty: send some text", fields={"prompt": "is empty"})
    left = longest - prompt
    if left < 1:
        raise too_long(prompt, longest, whole=True)
    return ContextRoom(prompt, left if wanted is None else min(wanted, left))
