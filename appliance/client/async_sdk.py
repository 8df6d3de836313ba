"""`AsyncAppliance`: an appliance as a Python object for programs with an event loop.

The same names and arguments as `Appliance`; one belongs to one event loop.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Self, Unpack

from appliance.api.auth.v1.auth_service_pb2 import WhoAmIResponse
from appliance.api.inference.v1.inference_service_pb2 import GenerateResponse
from appliance.client import target
from appliance.client.answers import Answer, Collected, Message, asked
from appliance.client.async_calls import ASK, AsyncCalls
from appliance.client.async_nouns import (
    AsyncSdkDatasets,
    AsyncSdkEndpoints,
    AsyncSdkJobs,
    AsyncSdkModels,
    AsyncSdkReports,
)
from appliance.client.connection import DEADLINE
from appliance.client.generated.async_calls import (
    AsyncAuditCalls,
    AsyncBindingCalls,
    AsyncCheckpointCalls,
    AsyncGatewayCalls,
    AsyncNodeCalls,
    AsyncProjectCalls,
    AsyncRoleCalls,
    AsyncServiceAccountCalls,
    AsyncSystemCalls,
    AsyncTokenizerCalls,
    AsyncTombstoneCalls,
    AsyncUserCalls,
)
from appliance.client.generated.sampling import SamplingFields


class AsyncAppliance:
    """An appliance as one caller; close it, or use it in an `async with` block.

    Nothing is called when it is made. It belongs to the event loop in which it calls first; after a
    fork, a process needs its own.

    Args:
        server: `host:port` of the control plane, an IPv6 address in brackets. May be left out when
            only questions are asked, and `gateway` is given.
        ca: file of the appliance's CA certificate, or the certificate itself as PEM; no other
            authority is believed.
        token_file: file of a bearer token, 0600. It is read again when the token is refused, so
            that a token can be rotated under a running program.
        token: the token itself, instead.
        project: short names belong to it.
        gateway: `host:port` of the gateway; what the control plane says if not given.

    Raises:
        InvalidInput: something of this cannot be.
    """

    def __init__(
        self,
        server: str = "",
        *,
        ca: str | os.PathLike[str] | bytes,
        token_file: str | os.PathLike[str] = "",
        token: str = "",
        project: str = "",
        gateway: str = "",
    ) -> None:
        self._begin(target.given(server, ca, token, token_file, project, gateway))

    @classmethod
    def from_context(cls, name: str = "", *, project: str = "") -> Self:
        """The appliance of a context of the command, as whoever is logged in there.

        Args:
            name: of the context; the one in use if empty.
            project: short names belong to it; the context's if empty.

        Raises:
            NotFound: there is no such context.
            FailedPrecondition: none is in use.
        """
        return cls._made(target.of_context(name, project, os.environ))

    @classmethod
    def from_environment(cls, surroundings: Mapping[str, str] | None = None) -> Self:
        """The appliance that the environment names, or the mapping that is given instead.

        `APPLIANCE_SERVER`, `APPLIANCE_CA_FILE` and `APPLIANCE_TOKEN_FILE`, and `APPLIANCE_PROJECT`
        and `APPLIANCE_GATEWAY` if there are such. Without a server, the context that
        `APPLIANCE_CONTEXT` names, or the one in use.

        Raises:
            InvalidInput: something of this cannot be.
            FailedPrecondition: some of it is missing.
        """
        return cls._made(
            target.of_environment(os.environ if surroundings is None else surroundings)
        )

    @classmethod
    def _made(cls, found: target.Target) -> Self:
        made = cls.__new__(cls)
        cls._begin(made, found)
        return made

    def _begin(self, found: target.Target) -> None:
        calls = self._calls = AsyncCalls(found)
        self.audit = AsyncAuditCalls(calls)
        self.bindings = AsyncBindingCalls(calls)
        self.checkpoints = AsyncCheckpointCalls(calls)
        self.datasets = AsyncSdkDatasets(calls)
        self.endpoints = AsyncSdkEndpoints(calls)
        self.gateways = AsyncGatewayCalls(calls)
        self.jobs = AsyncSdkJobs(calls)
        self.models = AsyncSdkModels(calls)
        self.nodes = AsyncNodeCalls(calls)
        self.projects = AsyncProjectCalls(calls)
        self.reports = AsyncSdkReports(calls)
        self.roles = AsyncRoleCalls(calls)
        self.service_accounts = AsyncServiceAccountCalls(calls)
        self.system = AsyncSystemCalls(calls)
        self.tokenizers = AsyncTokenizerCalls(calls)
        self.tombstones = AsyncTombstoneCalls(calls)
        self.users = AsyncUserCalls(calls)

    async def ask(
        self,
        endpoint: str,
        question: str | None = None,
        *,
        system: str = "",
        messages: Sequence[Message] | None = None,
        prompt: str | None = None,
        timeout: float | None = None,
        **sampling: Unpack[SamplingFields],
    ) -> Answer:
        """Ask a served model one thing, and wait for the whole answer.

        Args:
            endpoint: that serves it.
            question: what a user says.
            system: what the model should be, before the question.
            messages: a whole conversation instead, oldest first.
            prompt: plain text to go on from instead, without the model's template.
            timeout: seconds for all of it; None: as long as it takes.
            sampling: how to choose tokens; the likeliest, if nothing is said.

        Raises:
            ApplianceError: it was refused or failed.
        """
        collected = Collected()
        pieces = self.stream(
            endpoint,
            question,
            system=system,
            messages=messages,
            prompt=prompt,
            timeout=timeout,
            **sampling,
        )
        async for piece in pieces:
            collected.add(piece)
        return collected.answer()

    def stream(
        self,
        endpoint: str,
        question: str | None = None,
        *,
        system: str = "",
        messages: Sequence[Message] | None = None,
        prompt: str | None = None,
        timeout: float | None = None,
        **sampling: Unpack[SamplingFields],
    ) -> AsyncGenerator[GenerateResponse, None]:
        """Ask as `ask` does; each piece of the answer as it is made.

        Closing the iterator ends the answer, which frees its place in the engine. Asked again by
        itself before the first piece alone.

        Raises:
            ApplianceError: it was refused or failed, at once or later.
        """
        fields = asked(self._calls.requests, endpoint, question, messages, prompt, system, sampling)
        return self._calls.stream(ASK, GenerateResponse, timeout, **fields)

    async def whoami(self, *, timeout: float | None = DEADLINE) -> WhoAmIResponse:
        """Who calls, and with which roles. Raises ApplianceError."""
        return await self._calls.unary("AuthService.WhoAmI", WhoAmIResponse, timeout)

    async def close(self) -> None:
        """Close every connection; what still streams ends."""
        await self._calls.close()

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close every connection."""
        await self.close()
