"""Every field of every RPC with text made to hurt: an error with a sentence, never a bug.

The caller is an administrator, so that everything reaches the services.
"""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from appliance.control.bootstrap import parts
from appliance.control.rpc.servicer import descriptor_of
from appliance.wire.rules import AccessRule
from appliance.wire.status import from_rpc_error
from tests.fakes.appliance import ADMINISTRATOR, Appliance, bearer

ROUNDS = 8
TEXTS = (
    "",
    "projects/mine",
    "projects/mine/datasets/d/versions/1",
    "projects/mine/models/m",
    "projects/mine/jobs/j",
    "projects/mine/endpoints/e",
    "users/alice",
    "roles/viewer",
    "nodes/node-1",
    "serviceAccounts/app",
    "bindings/00",
    "demo",
    "'; DROP TABLE user; --",
    "../../etc/passwd",
    "line\r\nline",
    "\x00\x1b[31m",
    "\u202egpj.exe",
    "\uff11\uff12\uff13\uff14\uff15\uff16",
    "{}",
    "a" * 10_000,
    "projects/" + "p/" * 3000,
    "WyJhIl0",
    base64.urlsafe_b64encode(b'["\\ud800"]').decode(),
    base64.urlsafe_b64encode(b'["\\udfff",1]').decode(),
    "123e4567-e89b-42d3-a456-426614174000",
)
NUMBERS = (0, 1, -1, 2, 1000, 2**31 - 1, -(2**31))
LARGE = (*NUMBERS, 2**63 - 1, -(2**63))
REALS = (0.0, -1.0, 0.5, 1e308, float("inf"), float("nan"))
CALM = {
    *("Login", "WatchRouting", "Connect", "Logout"),
    *("EndUserSessions", "ResetPassword", "ResetFactor", "EndSession", "ChangePassword"),
}
"""Slow by design, never ending, or ending the caller's own session; the access table calls them."""


def value_of(field: FieldDescriptor, dice: random.Random, depth: int) -> Any:
    """A hostile value for a field; None for nothing."""
    kinds: dict[int, tuple[object, ...]] = {
        FieldDescriptor.TYPE_STRING: TEXTS,
        FieldDescriptor.TYPE_BYTES: tuple(text.encode() for text in TEXTS),
        FieldDescriptor.TYPE_INT32: NUMBERS,
        FieldDescriptor.TYPE_UINT32: (0, 1, 2**32 - 1),
        FieldDescriptor.TYPE_INT64: LARGE,
        FieldDescriptor.TYPE_UINT64: (0, 1, 2**64 - 1),
        FieldDescriptor.TYPE_DOUBLE: REALS,
        FieldDescriptor.TYPE_BOOL: (False, True),
        FieldDescriptor.TYPE_ENUM: (0, 1, 2, 99),
    }
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        if depth == 0 or field.message_type.full_name.startswith("google."):
            return None
        return message_of(field.message_type, dice, depth - 1)
    return dice.choice(kinds[field.type])


def message_of(descriptor: Any, dice: random.Random, depth: int = 4) -> Message:
    """A message with a hostile value in about half of its fields."""
    message: Message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        is_map = field.type == FieldDescriptor.TYPE_MESSAGE and (
            field.message_type.GetOptions().map_entry
        )
        if is_map or dice.random() < 0.3:
            continue
        value = value_of(field, dice, depth)
        if value is None:
            continue
        target = getattr(message, field.name)
        if field.is_repeated and field.type == FieldDescriptor.TYPE_MESSAGE:
            target.add().CopyFrom(value)
        elif field.is_repeated:
            target.append(value)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            target.CopyFrom(value)
        else:
            setattr(message, field.name, value)
    return message


async def reason_of(channel: Any, rule: AccessRule, messages: list[Message], metadata: Any) -> str:
    """What a call with these messages ends with."""
    serializer = type(messages[0]).SerializeToString

    async def stream() -> AsyncIterator[Message]:
        for message in messages:
            yield message

    try:
        if rule.request_streaming:
            await channel.stream_unary(rule.method, request_serializer=serializer)(
                stream(), metadata=metadata, timeout=30.0
            )
        elif rule.response_streaming:
            call = channel.unary_stream(rule.method, request_serializer=serializer)(
                messages[0], metadata=metadata, timeout=30.0
            )
            async for _ in call:
                call.cancel()
                break
        else:
            await channel.unary_unary(rule.method, request_serializer=serializer)(
                messages[0], metadata=metadata, timeout=30.0
            )
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error).reason
    except asyncio.CancelledError:
        return "OK"
    return "OK"


def served() -> list[tuple[AccessRule, MethodDescriptor, bool]]:
    rules = parts.rules()
    return [
        (rules[f"/{service.full_name}/{method.name}"], method, kinds is parts.MACHINES)
        for kinds in (parts.API, parts.MACHINES)
        for service in map(descriptor_of, kinds)
        for method in service.methods
        if method.name not in CALM
    ]


@pytest.mark.attack
@pytest.mark.parametrize("seed", [1, 2])
async def test_no_field_of_no_call_finds_a_bug(appliance: Appliance, seed: int) -> None:
    appliance.project("mine")
    appliance.service_account("app", "mine")
    node, gateway = appliance.node("node-1"), appliance.gateway()
    metadata = bearer(appliance.session(ADMINISTRATOR))
    dice = random.Random(seed)
    found = []
    for rule, method, on_machines in served():
        machine = gateway if "Routing" in rule.method else node
        channel = appliance.channel(
            appliance.control.machines_port if on_machines else appliance.control.api_port,
            machine if on_machines else None,
        )
        for _ in range(ROUNDS):
            messages = [message_of(method.input_type, dice) for _ in range(3)]
            reason = await reason_of(channel, rule, messages, metadata)
            if reason in {"INTERNAL", "UNKNOWN", "OBJECT_TAMPERED"}:
                found.append((rule.method, reason, str(messages[0])[:500]))
    assert found == []
    # The log that all this went into is still one line a record, each of them whole.
    log = (appliance.folder / "audit" / "000000000000.log").read_bytes()
    assert log.count(b"\n") == len(appliance.records())
