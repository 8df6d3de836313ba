"""Many answers at once, streamed over gRPC, as an internal application would ask for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from appliance.client.inference import AsyncInference
from appliance.core.errors import ApplianceError

TOKENS = 48
SUBJECTS = "a module,a class,a function,a list,a dictionary,an exception,a generator,a decorator"
PROMPTS = [
    question.format(subject)
    for question in ("Explain {} in Python.", "Give an example of {} and say what it is for.")
    for subject in SUBJECTS.split(",")
]


@dataclass(frozen=True)
class Gateway:
    """Where the gateway is, whose certificate to believe, and who asks."""

    address: str
    ca_pem: bytes
    token: str = field(repr=False)


@dataclass
class Answer:
    """One answer as its caller saw it."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    continuations: int = 0
    error: str = ""


async def ask_all(
    gateway: Gateway,
    endpoint: str,
    prompts: Sequence[str],
    tokens: int,
    on_piece: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Ask all prompts at once, greedily; `on_piece` is called for each piece that arrives."""
    async with AsyncInference(gateway.address, gateway.ca_pem, gateway.token) as client:

        async def ask(prompt: str) -> Answer:
            answer = Answer()
            try:
                async for piece in client.generate(
                    endpoint,
                    messages=[("user", prompt)],
                    max_tokens=tokens,
                    temperature=0.0,
                    ignore_end=len(prompts) > 1,
                ):
                    answer.tokens += piece.token_ids
                    answer.text += piece.text
                    answer.continuations = piece.totals.continuations
                    on_piece()
            except ApplianceError as error:
                answer.error = f"{error.reason}: {error}"
            return answer

        return list(await asyncio.gather(*map(ask, prompts)))
