"""Access rules: what an RPC needs, read from the option that stands beside it in its `.proto`.

Rules kept here:
* every RPC says exactly one of: a permission, anonymous, self; one that says none or two stops the
  server from starting;
* the field that names the resource is found and checked when the server starts, not when a request
  comes;
* an RPC that changes something says which fields its audit records carry, see
  `appliance.wire.recorded`;
* a path of `-` says in the proto that the resource is the whole appliance although the request has
  a name in it.

The attack: a new RPC that nobody thought to protect, or a rule whose resource field is misspelt so
that every request is judged as if it were for the whole appliance.

Called by the composition root of every server, the gate, the command (`--show-permission`) and the
test that calls every RPC as every kind of caller.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from google.protobuf.descriptor import (
    Descriptor,
    FieldDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)
from google.protobuf.message import Message

from appliance.api.common.v1 import access_pb2
from appliance.core.errors import ApplianceError
from appliance.wire.recorded import Recorded, recorded_of

HEALTH_SERVICE = "/grpc.health.v1.Health/"
"""Prefix of the health methods; they need no rule: they only say whether the server serves."""

_DEFAULT_FIELDS = ("name", "parent")
_WHOLE_APPLIANCE = "-"


class RuleMissing(ApplianceError):
    """An RPC without a usable rule; the server must not start."""

    code = "FAILED_PRECONDITION"
    reason = "RULE_MISSING"


@dataclass(frozen=True)
class AccessRule:
    """What one RPC needs.

    Attributes:
        method: full path, `/appliance.api.jobs.v1.JobService/CreateJob`.
        permission: what the policy decides, `jobs.create`; empty with `anonymous` and `own`.
        fresh_mfa: the caller's session passed a second factor in the last five minutes.
        anonymous: nobody needs to be identified.
        own: anybody with a live session may, for what concerns itself (`self` in the proto).
        unfinished: also a session may that can do nothing else until its password is replaced.
        granted: also allowed by the token of an upload, for that upload alone.
        reads: it changes nothing; its proto says `NO_SIDE_EFFECTS`.
        resource: path of the request's field that names the resource; empty: the whole appliance.
        request_streaming: the caller sends a stream; the resource is in its first message.
        response_streaming: the server sends a stream.
        recorded: fields of request and response that its audit records carry.
        summary: the comment of the RPC in its proto, on one line.
    """

    method: str
    permission: str
    fresh_mfa: bool = False
    anonymous: bool = False
    own: bool = False
    unfinished: bool = False
    granted: bool = False
    reads: bool = False
    resource: str = ""
    request_streaming: bool = False
    response_streaming: bool = False
    recorded: Recorded = field(default_factory=Recorded)
    summary: str = ""

    @property
    def streaming(self) -> bool:
        """Whether either side streams: such a call can outlive the decision made at its start."""
        return self.request_streaming or self.response_streaming


def rules_of(services: Iterable[ServiceDescriptor]) -> dict[str, AccessRule]:
    """The rule of every RPC of the services, by full path.

    Raises RuleMissing naming all RPCs without a usable rule, and why.
    """
    rules: dict[str, AccessRule] = {}
    wrong: list[str] = []
    for service in services:
        for method in service.methods:
            path = f"/{service.full_name}/{method.name}"
            try:
                rules[path] = _rule(path, method)
            except ValueError as error:
                wrong.append(f"{path}: {error}")
    if wrong:
        raise RuleMissing(
            "the server does not start, because RPCs have no usable access rule; "
            f"give each an (appliance.api.common.v1.access) option: {'; '.join(wrong)}"
        )
    return rules


def _rule(path: str, method: MethodDescriptor) -> AccessRule:
    """One method's rule. Raises ValueError with what is wrong."""
    options = method.GetOptions()
    # The generated stub declares a plain field descriptor, protobuf's own stub wants another type.
    extension = cast("Any", access_pb2.access)
    if not options.HasExtension(extension):
        raise ValueError("no rule")
    access: access_pb2.Access = options.Extensions[extension]
    own: bool = access.self
    if [bool(access.permission), access.anonymous, own].count(True) != 1:
        raise ValueError("it must say exactly one of permission, anonymous and self")
    if access.fresh_mfa and access.anonymous:
        raise ValueError("an anonymous caller has no second factor")
    if access.unfinished and not own:
        raise ValueError("only what concerns the caller itself is open to an unfinished session")
    if access.granted and not access.permission:
        raise ValueError("the token of an upload needs a permission of its owner")
    return AccessRule(
        method=path,
        permission=access.permission,
        fresh_mfa=access.fresh_mfa,
        anonymous=access.anonymous,
        own=own,
        unfinished=access.unfinished,
        granted=access.granted,
        reads=options.idempotency_level == options.NO_SIDE_EFFECTS,
        resource=_resource_field(method.input_type, access.resource),
        request_streaming=method.client_streaming,
        response_streaming=method.server_streaming,
        recorded=recorded_of(method, access.asked, access.made),
        summary=_summary(method),
    )


def _resource_field(request: Descriptor, path: str) -> str:
    """The checked path of the field that names the resource; empty for the whole appliance."""
    if path == _WHOLE_APPLIANCE:
        return ""
    if not path:
        return next((name for name in _DEFAULT_FIELDS if name in request.fields_by_name), "")
    message: Descriptor | None = request
    field: FieldDescriptor | None = None
    for part in path.split("."):
        if message is None or part not in message.fields_by_name:
            raise ValueError(f"{request.name} has no field {path}")
        field = message.fields_by_name[part]
        message = field.message_type
    if field is None or field.type != FieldDescriptor.TYPE_STRING or field.is_repeated:
        raise ValueError(f"{path} of {request.name} is not one text")
    return path


def _summary(method: MethodDescriptor) -> str:
    """The RPC's comment, which the generated servicer has as its docstring; empty without one."""
    service = method.containing_service
    module = service.file.name.removesuffix(".proto").replace("/", ".") + "_pb2_grpc"
    servicer = getattr(importlib.import_module(module), f"{service.name}Servicer")
    text: str | None = getattr(servicer, method.name).__doc__
    return " ".join((text or "").split())


def resource_of(rule: AccessRule, request: Message | None) -> str:
    """Name of the resource a request is about; empty for the whole appliance.

    Of a stream, `request` is the first message, or None when the caller sent none.
    """
    if not rule.resource or request is None:
        return ""
    value: object = request
    for part in rule.resource.split("."):
        value = getattr(value, part)
    return str(value)
