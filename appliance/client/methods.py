"""Find an RPC by its short name, `JobService.CreateJob`, and import its stubs when it is used.

The one place that knows which generated module holds which service, so that callers name calls
instead of importing three modules for each. Called by the command and by tests.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from appliance.core.errors import InvalidInput
from appliance.core.numbers import span
from appliance.core.strict_json import is_text
from appliance.wire.rules import AccessRule, rules_of

SERVICES = {
    "AuditService": "audit.v1.audit_service",
    "AuthService": "auth.v1.auth_service",
    "BindingService": "access.v1.binding_service",
    "CheckpointService": "jobs.v1.checkpoint_service",
    "DatasetService": "data.v1.dataset_service",
    "DownloadService": "data.v1.download_service",
    "EndpointService": "serving.v1.endpoint_service",
    "GatewayService": "serving.v1.gateway_service",
    "InferenceService": "inference.v1.inference_service",
    "JobService": "jobs.v1.job_service",
    "ModelService": "models.v1.model_service",
    "NodeService": "nodes.v1.node_service",
    "ProjectService": "projects.v1.project_service",
    "ReportService": "reports.v1.report_service",
    "RoleService": "access.v1.role_service",
    "ServiceAccountService": "access.v1.service_account_service",
    "SystemService": "system.v1.system_service",
    "TokenizerService": "data.v1.tokenizer_service",
    "TombstoneService": "data.v1.tombstone_service",
    "UploadService": "data.v1.upload_service",
    "UserService": "access.v1.user_service",
}
"""Every service that people and applications call, and where its generated code lies."""


@dataclass(frozen=True)
class Method:
    """One RPC: its stub's class, its request's class, and the rule of its access.

    The classes are generated and have no types of their own. `idempotent`: its proto says that it
    changes something, once however often it is called.
    """

    name: str
    stub: Any
    request: Any
    rule: AccessRule
    idempotent: bool

    @property
    def repeatable(self) -> bool:
        """Whether the same request may be sent again: it is a read, or done once however often."""
        keyed = "request_id" in self.request.DESCRIPTOR.fields_by_name
        return self.rule.reads or self.idempotent or keyed

    @property
    def short(self) -> str:
        """Its name within the service."""
        return self.name.partition(".")[2]

    def filled(self, **fields: Any) -> Any:
        """A request; nested messages are given as dictionaries.

        Raises InvalidInput naming the field that cannot hold its value.
        """
        _check(self.request.DESCRIPTOR, fields)
        try:
            return self.request(**fields)
        except (TypeError, ValueError) as error:
            wrong = [field for field in fields if not self._takes(field, fields[field])]
            raise _wrong(", ".join(wrong), f"cannot hold its value ({error})") from error

    def _takes(self, field: str, value: Any) -> bool:
        try:
            self.request(**{field: value})
        except (TypeError, ValueError):
            return False
        return True


@functools.cache
def find(name: str) -> Method:
    """The RPC of a short name. Raises KeyError for one that does not exist."""
    service, _, short = name.partition(".")
    path = f"appliance.api.{SERVICES[service]}"
    messages = importlib.import_module(f"{path}_pb2")
    stubs = importlib.import_module(f"{path}_pb2_grpc")
    descriptor = messages.DESCRIPTOR.services_by_name[service]
    method = descriptor.methods_by_name[short]
    request = importlib.import_module(
        method.input_type.file.name.removesuffix(".proto").replace("/", ".") + "_pb2"
    )
    rule = rules_of([descriptor])[f"/{descriptor.full_name}/{short}"]
    return Method(
        name,
        getattr(stubs, f"{service}Stub"),
        getattr(request, method.input_type.name),
        rule,
        method.GetOptions().idempotency_level == MethodOptions.IDEMPOTENT,
    )


_WHOLE = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}


def _check(descriptor: Descriptor, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        field = descriptor.fields_by_name.get(name)
        if field is None:
            raise _wrong(name, f"is no field of {descriptor.name}{_meant(descriptor, name)}")
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            for key, member in value.items():
                _check_value(name, entry.fields_by_name["key"], key)
                _check_value(name, entry.fields_by_name["value"], member)
            continue
        for each in value if isinstance(value, list | tuple) else (value,):
            _check_value(name, field, each)


def _check_value(name: str, field: FieldDescriptor, value: object) -> None:
    if isinstance(value, dict) and field.message_type is not None:
        _check(field.message_type, value)
    elif isinstance(value, int) and field.cpp_type in _WHOLE:
        least, most = _WHOLE[field.cpp_type]
        if not least <= value <= most:
            raise _wrong(name, f"must be {span(least, most)}")
    elif isinstance(value, str) and field.enum_type is not None:
        if value not in field.enum_type.values_by_name:
            known = ", ".join(field.enum_type.values_by_name)
            raise _wrong(name, f"must be one of {known}")
    elif isinstance(value, str) and not is_text(value):
        raise _wrong(name, "is not UTF-8: write it in another way")


def _meant(descriptor: Descriptor, name: str) -> str:
    close = difflib.get_close_matches(name, list(descriptor.fields_by_name), 1)
    known = ", ".join(descriptor.fields_by_name)
    return f": did you mean {close[0]}?" if close else f"; there are {known}" if known else ""


def _wrong(name: str, why: str) -> InvalidInput:
    return InvalidInput(f"{name} {why}.", fields={name: why})
