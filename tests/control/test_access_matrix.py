"""Every RPC of the control plane, as every role at every scope, against one reviewed table.

A real server on two listeners, real certificates and tokens. The answer is read from the audit log:
`intent` means the call reached its service, `denied` that the door refused it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import yaml
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from appliance.control.auth.rules import RoleLink
from appliance.control.auth.scopes import EVERYWHERE, PLATFORM
from appliance.control.bootstrap import parts
from appliance.control.rpc.servicer import descriptor_of
from appliance.control.store import tables
from appliance.core.identity import PrincipalKind
from appliance.crypto import possession
from appliance.wire.rules import AccessRule
from appliance.wire.status import from_rpc_error
from tests.fakes.appliance import ADMINISTRATOR, Appliance, Machine, bearer

TABLE = yaml.safe_load((Path(__file__).parent / "access_matrix.yaml").read_text())
PREFIX = "/appliance.api."
LOG_OUT = "auth.v1.AuthService/Logout"
ALLOWED, UNREACHABLE = "allowed", "UNREACHABLE"


def members(names: list[str]) -> Iterator[str]:
    """The callers in a list of callers and groups."""
    for name in names:
        if name in TABLE["groups"]:
            yield from members(TABLE["groups"][name])
        else:
            yield name


def expected() -> dict[tuple[str, str], str]:
    """(method, caller) -> outcome; a caller who is named twice for a method is an error."""
    found: dict[tuple[str, str], str] = {}
    for method, outcomes in TABLE["methods"].items():
        for outcome, names in outcomes.items():
            for caller in members(names):
                assert (method, caller) not in found, f"{method}: {caller} stands there twice"
                found[method, caller] = outcome
    return found


def methods() -> dict[str, tuple[AccessRule, MethodDescriptor, bool]]:
    """Every RPC: its rule, its descriptor, and whether it is on the machine listener."""
    rules = parts.rules()
    found = {}
    for kinds, on_machines in ((parts.API, False), (parts.MACHINES, True)):
        for kind in kinds:
            service = descriptor_of(kind)
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                name = path.removeprefix(PREFIX)
                found[name] = (rules[path], method, on_machines)
                if rules[path].permission.startswith("bindings."):
                    for scope in ("platform", "projects/-"):
                        found[f"{name} {scope}"] = found[name]
    return found


def test_the_table_is_complete() -> None:
    wanted = {(method, caller) for method in methods() for caller in TABLE["callers"]}
    assert set(expected()) == wanted


@dataclass(frozen=True)
class Someone:
    """A caller: a token, or a certificate, or both, or neither."""

    token: str = ""
    machine: Machine | None = None


@dataclass
class Cast:
    """Every caller of the table, on one appliance."""

    appliance: Appliance
    bindings: dict[str, str]

    @classmethod
    def of(cls, appliance: Appliance) -> Cast:
        for project in ("mine", "theirs"):
            appliance.project(project)
        appliance.user("auditor", ("auditor", PLATFORM), ("auditor", EVERYWHERE))
        for role in ("administrator", "auditor"):
            appliance.user(f"{role}-platform", (role, PLATFORM))
            appliance.user(f"{role}-everywhere", (role, EVERYWHERE))
        for role in ("owner", "developer", "viewer", "inference"):
            appliance.user(role, (role, "mine"))
            appliance.user(f"{role}-everywhere", (role, EVERYWHERE))
        appliance.user("owner-elsewhere", ("owner", "theirs"))
        appliance.user("nobody")
        both = (("administrator", PLATFORM), ("administrator", EVERYWHERE))
        appliance.user("locked", *both, locked=True)
        appliance.user("bound")
        return cls(
            appliance,
            {
                "": appliance.bind(RoleLink("user:bound", "viewer", "mine")),
                "platform": appliance.bind(RoleLink("user:bound", "auditor", PLATFORM)),
                "projects/-": appliance.bind(RoleLink("user:bound", "viewer", EVERYWHERE)),
            },
        )

    def people(self) -> dict[str, Someone]:
        """Fresh sessions for people, half and whole, live and ended."""
        session = self.appliance.session
        return {
            "partial": Someone(session(ADMINISTRATOR, step="VERIFY_TOTP")),
            "must-change": Someone(session(ADMINISTRATOR, step="CHANGE_PASSWORD")),
            "expired": Someone(session(ADMINISTRATOR, lifetime=timedelta(seconds=-1))),
            "locked": Someone(session("locked")),
            "administrator": Someone(session(ADMINISTRATOR)),
            "administrator-stale": Someone(session(ADMINISTRATOR, mfa_age=timedelta(minutes=6))),
            **{
                name: Someone(session(name))
                for name in (
                    *("administrator-platform", "administrator-everywhere", "auditor"),
                    *("auditor-platform", "auditor-everywhere", "owner-everywhere"),
                    *("developer-everywhere", "viewer-everywhere", "inference-everywhere"),
                    *("owner", "developer", "viewer", "inference", "owner-elsewhere", "nobody"),
                )
            },
        }

    def others(self) -> dict[str, Someone]:
        """Applications and machines."""
        start = self.appliance
        found = {
            "anonymous": Someone(),
            "application": Someone(start.service_account("app", "mine")),
            "application-expired": Someone(start.service_account("app-expired", "mine")),
            "application-locked": Someone(start.service_account("app-locked", "mine")),
            "application-elsewhere": Someone(start.service_account("app-theirs", "theirs")),
            "node": Someone(machine=start.node("gpu-1")),
            "gateway": Someone(machine=start.gateway()),
            "node-evicted": Someone(machine=start.node("gpu-2", state="EVICTED")),
            "node-unknown": Someone(machine=start.certificate(PrincipalKind.NODE, "gpu-9")),
            "replica": Someone(machine=start.certificate(PrincipalKind.REPLICA, "r1")),
        }
        token, account = tables.token, tables.service_account
        with start.database.write() as transaction:
            ended = token.update().where(token.c.service_account == "app-expired")
            transaction.run(ended.values(expire_time=start.clock() - timedelta(seconds=1)))
            locked = account.update().where(account.c.id == "app-locked")
            transaction.run(locked.values(locked=True))
        return found


ABSENT_JOB = "projects/mine/jobs/absent"
ABSENT_CHECKPOINT = f"{ABSENT_JOB}/checkpoints/e1-step-1"


def request_for(
    rule: AccessRule,
    method: MethodDescriptor,
    bindings: dict[str, str],
    scope: str,
    carried: Mapping[str, object],
) -> Message:
    """About project `mine`, or about nothing in particular; never one that changes something."""
    request: Message = GetMessageClass(method.input_type)()
    noun = rule.permission.split(".")[0]
    account = rule.resource.endswith("name")
    names = {
        "checkpoints": ABSENT_CHECKPOINT if rule.resource == "name" else ABSENT_JOB,
        "bindings": bindings[scope] if rule.resource == "name" else scope or "projects/mine",
        "gateways": "gateways/absent",
        "nodes": "nodes/absent",
        "roles": "roles/viewer",
        "serviceAccounts": "serviceAccounts/app" if account else "projects/mine",
        "users": "users/absent",
        "projects": "projects/mine",
    }
    default = "projects/mine" if rule.resource == "parent" else f"projects/mine/{noun}/absent"
    *path, last = rule.resource.split(".")
    target = request
    for part in path:
        target = getattr(target, part)
    if last:
        setattr(target, last, names.get(noun, default))
    # What passes the door must stop at the service's first check.
    stops: dict[str, object] = {"request_id": "not-a-uuid", "lifetime_days": -1}
    if rule.anonymous:
        # What nobody was ever given, or has the key of, does not pass the door.
        stops |= carried
    for field, value in stops.items():
        if field in method.input_type.fields_by_name:
            setattr(request, field, value)
    return request


async def call(channel: grpc.aio.Channel, rule: AccessRule, request: Message, metadata: Any) -> str:
    """Make a call, leave a stream after its first message; the reason of its error."""
    kinds = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    make = kinds[rule.request_streaming, rule.response_streaming](
        rule.method, request_serializer=type(request).SerializeToString
    )

    async def requests() -> AsyncIterator[Message]:
        if rule.resource:
            yield request

    made = make(requests() if rule.request_streaming else request, metadata=metadata, timeout=30.0)
    try:
        if rule.response_streaming:
            async for _ in made:
                break
        else:
            await made
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error).reason
    except asyncio.CancelledError:
        # How gRPC ends a stream of requests whose connection never came about.
        return UNREACHABLE
    finally:
        made.cancel()
    return "OK"


def carried_by_strangers(appliance: Appliance, token: str, machine: Machine) -> dict[str, object]:
    """A token that has ended, and the proof of a key whose certificate still holds."""
    base = appliance.control.base
    challenge = base.challenges.make()
    signature = possession.prove(
        machine.key, machine.certificate, base.keyring.cluster_id, challenge, b""
    )
    return {
        "token": token,
        "challenge": challenge,
        "certificate": machine.certificate.decode(),
        "signature": signature,
    }


async def test_every_rpc_answers_every_caller_as_the_table_says(appliance: Appliance) -> None:
    players = Cast.of(appliance)
    others, people = players.others(), players.people()
    base = appliance.control
    node = others["node"].machine
    assert node is not None
    carried = carried_by_strangers(appliance, people["expired"].token, node)
    said: dict[tuple[str, str], str] = {}
    before = len(appliance.records())

    async def ask(name: str, caller: str, someone: Someone) -> None:
        rule, method, on_machines = methods()[name]
        port = base.machines_port if on_machines else base.api_port
        said[name, caller] = await call(
            appliance.channel(port, someone.machine),
            rule,
            request_for(rule, method, players.bindings, name.partition(" ")[2], carried),
            bearer(someone.token, request_id(name, caller)),
        )

    for name in methods():
        everybody = {**others, **(players.people() if name == LOG_OUT else people)}
        await asyncio.gather(*(ask(name, *each) for each in everybody.items()))
    kinds, outcomes = await recorded(appliance, before)
    got, counted = {}, 0
    for (name, caller), reason in said.items():
        key = request_id(name, caller)
        if kinds[key] == Counter(intent=1, result=1):
            got[name, caller] = ALLOWED
        elif kinds[key] == Counter(denied=1):
            assert outcomes[key] == reason
            got[name, caller] = reason
        elif reason == "OK":
            # A read that needs no identity: without a record.
            rule, *_ = methods()[name]
            assert (rule.anonymous, rule.reads, kinds[key]) == (True, True, Counter())
            got[name, caller] = ALLOWED
        elif reason in {UNREACHABLE, "UNAVAILABLE"}:
            assert kinds[key] == Counter()
            got[name, caller] = UNREACHABLE
        else:
            # Nobody with a name: one of a count.
            assert kinds[key] == Counter()
            counted += 1
            got[name, caller] = reason
    assert got == expected()
    await base.record_refusals()
    assert sum(record["details"].get("count", 0) for record in appliance.records()) == counted


def request_id(method: str, caller: str) -> str:
    """Names one call in the audit log."""
    return f"{method.replace('/', '.').replace(' ', '.')}.{caller}"[-64:]


async def recorded(
    appliance: Appliance, before: int
) -> tuple[dict[str, Counter[str]], dict[str, str]]:
    """Kinds of records and outcome of each call, once every intent has its result."""
    while True:
        kinds: dict[str, Counter[str]] = defaultdict(Counter)
        outcomes: dict[str, str] = {}
        records = appliance.records()[before:]
        asked = {
            record["request_id"]: record["details"].get("caller_request_id")
            for record in records
            if record["kind"] != "intent"
        }
        for record in records:
            key = asked.get(record["request_id"]) or record["request_id"]
            kinds[key][record["kind"]] += 1
            outcomes[key] = record["outcome"]
        if all(found["intent"] == found["result"] for found in kinds.values()):
            return kinds, outcomes
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("part", ["callers", "groups"])
def test_every_name_in_the_table_is_used(part: str) -> None:
    used = {
        name
        for outcomes in (*TABLE["methods"].values(), TABLE["groups"])
        for names in outcomes.values()
        for name in names
    }
    assert set(TABLE[part]) - used == set()
