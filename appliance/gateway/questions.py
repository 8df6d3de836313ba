"""From a question to what is asked of a replica: tokens of the version that is to answer.

Rules kept here:
* a prompt is made for the version whose turn it is, with its tokenizer, its template and its limit;
* a version that goes while its tokenizer is on its way is no fault of the caller: the question is
  prepared for another one.

Called by `appliance.gateway.pipeline`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from appliance.api.inference.v1 import generation_pb2
from appliance.core.errors import ApplianceError, InvalidInput, NotFound
from appliance.gateway.ask import Ask
from appliance.gateway.encode import too_long
from appliance.gateway.fleet import ReplicaLinks
from appliance.gateway.models import ServedModels
from appliance.gateway.rendering import Message
from appliance.gateway.sampling import check_sampling
from appliance.gateway.snapshot import Pool, Route, ServedVersion
from appliance.gateway.text import Detokenizer
from appliance.gateway.tokenize import ServedModel, room
from appliance.gateway.turns import Asker
from appliance.gateway.view import View


@dataclass(frozen=True)
class Question:
    """What a caller asks: text, token ids or a conversation, exactly one; and how to answer."""

    sampling: generation_pb2.Sampling
    text: str | None = field(default=None, repr=False)
    tokens: Sequence[int] | None = field(default=None, repr=False)
    messages: Sequence[Message] | None = field(default=None, repr=False)


class Questions:
    """Prepares questions.

    Args:
        view: says what is served.
        models: their tokenizers.
        fleet: says whose turn it is.
    """

    def __init__(self, view: View, models: ServedModels, fleet: ReplicaLinks) -> None:
        self._view = view
        self._models = models
        self._fleet = fleet

    async def prepare(
        self, question: Question, asker: Asker, before: Ask | None
    ) -> tuple[Detokenizer, Ask]:
        """What is asked of a replica, and what makes text of its answer.

        Args:
            question: of an admitted call.
            asker: who asks which endpoint.
            before: what was made of it for another version.

        Raises ApplianceError: it cannot be asked.
        """
        check_sampling(question.sampling)
        while True:
            route = self._route(asker.endpoint)
            version = self._fleet.pick_version(
                route, lambda each: self._models.has(Pool(asker.endpoint, each))
            )
            try:
                text, ask = await self._made(question, asker, version)
            except ApplianceError:
                if version in self._route(asker.endpoint).versions:
                    raise
                continue
            if before is not None:
                ask.retries, ask.patience = before.retries, before.patience
            return text, ask

    def _route(self, endpoint: str) -> Route:
        """The route of an endpoint, as the view is now. Raises NotFound."""
        snapshot = self._view.last
        route = snapshot.routes.get(endpoint) if snapshot else None
        if route is None:
            raise NotFound(f"{endpoint} is not served any more", endpoint=endpoint)
        return route

    async def _made(
        self, question: Question, asker: Asker, version: ServedVersion
    ) -> tuple[Detokenizer, Ask]:
        """The same, for one version."""
        sampling, longest = question.sampling, version.max_sequence_length
        model = await self._models.get(Pool(asker.endpoint, version))
        prompt = await tokens_of(model, question, longest, asker)
        wanted = sampling.max_tokens if sampling.HasField("max_tokens") else None
        space = room(len(prompt), wanted, longest)
        text = Detokenizer(model.decoding, prompt, sampling.stop)
        ask = _ask(asker.endpoint, model, prompt, sampling, space.max_tokens)
        ask.version, ask.caller = version, asker.caller
        return text, ask


async def tokens_of(model: ServedModel, question: Question, most: int, asker: Asker) -> list[int]:
    """The ids of a prompt, fewer than `most`.

    Raises InvalidInput and ContextExceeded; who asks is counted for the model's turns.
    """
    if question.messages is not None:
        return await model.chat(question.messages, most, asker)
    if question.tokens is not None:
        size = model.vocabulary
        # First of all how many: looking at a million of them would stop others.
        if len(question.tokens) >= most:
            raise too_long(len(question.tokens), most, whole=True)
        if question.tokens and not 0 <= min(question.tokens) <= max(question.tokens) < size:
            raise InvalidInput(
                f"a token id is not in the model's vocabulary of {size}",
                fields={"prompt": "has an unknown token id"},
            )
        return list(question.tokens)
    if question.text is not None:
        return await model.prompt(question.text, most, asker)
    raise InvalidInput(
        "send a prompt or a conversation", fields={"prompt": "is missing, and chat too"}
    )


def _ask(
    endpoint: str,
    model: ServedModel,
    prompt: list[int],
    wanted: generation_pb2.Sampling,
    max_tokens: int,
) -> Ask:
    sampling = generation_pb2.Sampling()
    sampling.CopyFrom(wanted)
    sampling.max_tokens = max_tokens
    # A control token is never text, so as a stop text it is the id that ends the answer.
    ids = {control.text: control.id for control in model.controls}
    ends = [*model.ends, *(ids[stop] for stop in wanted.stop if stop in ids)]
    del sampling.stop[:]
    return Ask(endpoint, prompt, sampling, ends, model.vocabulary)
