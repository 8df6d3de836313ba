"""Errors on the wire: the exception tree to `google.rpc.Status` and back (AIP-193).

Rules kept here:
* an error crosses as code, sentence and details: one `ErrorInfo` (reason, domain `appliance`), the
  request's id, a `BadRequest` when fields are wrong, a `RetryInfo` when waiting helps;
* all of it is cut to a size that fits into trailing metadata, so that a long message never turns
  into another error;
* what a server says becomes the same class again at the caller; what is not from our domain is
  mapped by its code, and why a server is not reached by what gRPC says of it.

Called by the door of every server (`to_status`) and by the client (`from_rpc_error`).
"""

from __future__ import annotations

from typing import NamedTuple, cast

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from appliance.core.errors import (
    BY_REASON,
    AlreadyExists,
    ApplianceError,
    Conflict,
    Denied,
    Exhausted,
    FailedPrecondition,
    Internal,
    InvalidInput,
    NotFound,
    Tampered,
    Unauthenticated,
    Unavailable,
    UnknownMethod,
)
from appliance.wire.unreachable import explain

DOMAIN = "appliance"
REQUEST_ID = "x-request-id"
"""Trailer of every error: the id under which the server's log and records have the call."""
# Bytes. The message crosses twice, once percent-encoded (three times its size), the details in
# base64: together they stay below the 8 KiB of metadata that gRPC accepts by default.
_MAX_MESSAGE = 800
_MAX_KEY = 100
_MAX_VALUE = 300
_METADATA_BUDGET = 1000
_FIELDS_BUDGET = 1500

_BY_CODE: dict[str, type[ApplianceError]] = {
    "INVALID_ARGUMENT": InvalidInput,
    "OUT_OF_RANGE": InvalidInput,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "PERMISSION_DENIED": Denied,
    "UNAUTHENTICATED": Unauthenticated,
    "ABORTED": Conflict,
    "FAILED_PRECONDITION": FailedPrecondition,
    "RESOURCE_EXHAUSTED": Exhausted,
    "UNAVAILABLE": Unavailable,
    # A server that stops answers CANCELLED to calls it has not accepted; another try may work.
    "CANCELLED": Unavailable,
    "DEADLINE_EXCEEDED": Unavailable,
    "UNIMPLEMENTED": UnknownMethod,
    "DATA_LOSS": Tampered,
}

_SENTENCES = {
    "CANCELLED": "the server ended the call: it may be stopping; repeat it",
    "DEADLINE_EXCEEDED": "the server did not answer in time: repeat, or allow more time",
    "UNIMPLEMENTED": "the server does not know this call: it may be older than this program",
}


def _cut(text: str, longest: int) -> str:
    """Valid UTF-8 of at most `longest` bytes."""
    data = text.encode("utf-8", "replace")
    if len(data) <= longest:
        return data.decode("utf-8")
    return data[: longest - 3].decode("utf-8", "ignore") + "..."


def _entries(values: dict[str, str], budget: int) -> dict[str, str]:
    """The first entries that fit into `budget` bytes together."""
    entries: dict[str, str] = {}
    for key, value in values.items():
        short_key, short_value = _cut(key, _MAX_KEY), _cut(value, _MAX_VALUE)
        budget -= len(short_key.encode()) + len(short_value.encode())
        if budget < 0:
            break
        entries[short_key] = short_value
    return entries


def _pack(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def to_status(error: ApplianceError, request_id: str) -> grpc.Status:
    """The error as a status with details."""
    details = [
        _pack(
            error_details_pb2.ErrorInfo(
                reason=error.reason,
                domain=DOMAIN,
                metadata=_entries(error.metadata, _METADATA_BUDGET),
            )
        ),
        _pack(error_details_pb2.RequestInfo(request_id=request_id)),
    ]
    if error.fields:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=field, description=problem)
            for field, problem in _entries(error.fields, _FIELDS_BUDGET).items()
        ]
        details.append(_pack(error_details_pb2.BadRequest(field_violations=violations)))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    code: int = grpc.StatusCode[error.code].value[0]
    status = status_pb2.Status(
        code=code, message=_cut(error.message, _MAX_MESSAGE), details=details
    )
    found = rpc_status.to_status(status)
    # Beside the details also in plain text, for clients and proxies that do not read them.
    trailers = (*found.trailing_metadata, (REQUEST_ID, request_id))
    return cast("grpc.Status", _Status(found.code, found.details, trailers))


class _Status(NamedTuple):
    """What gRPC asks of a status; its own class is private."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def from_rpc_error(error: grpc.RpcError) -> ApplianceError:
    """The error of a failed call as an exception of ours.

    `metadata["request_id"]` names the call in the server's log when the server said it; never
    raises.
    """
    # Errors of both flavours (`grpc.aio` and threads) are calls too; their type does not say so.
    failed = cast("grpc.Call", error)
    try:
        status = rpc_status.from_call(failed)
    except (ValueError, DecodeError):
        status = None
    if status is not None:
        found = _from_status(status)
        if found is not None:
            return found
    code = failed.code().name
    said = failed.details() or ""
    if code == "UNAVAILABLE":
        return _with_detail(explain(said), said)
    sentence = _SENTENCES.get(code, said or f"the call failed with {code}")
    return _with_detail(_BY_CODE.get(code, Internal)(sentence), said)


def _with_detail(error: ApplianceError, said: str) -> ApplianceError:
    """The error with what gRPC itself said, for who looks closer."""
    if said:
        error.metadata["detail"] = said
    return error


def _from_status(status: status_pb2.Status) -> ApplianceError | None:
    """The exception in a status of our domain; None when the status is from somewhere else."""
    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.RequestInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    found = {
        part.DESCRIPTOR.full_name
        for part in (info, request, bad, retry)
        for detail in status.details
        if detail.Is(part.DESCRIPTOR) and detail.Unpack(part)
    }
    if info.DESCRIPTOR.full_name not in found or info.domain != DOMAIN:
        return None
    code = grpc.StatusCode(_VALUES[status.code]).name if status.code in _VALUES else "INTERNAL"
    error = BY_REASON.get(info.reason) or _BY_CODE.get(code, Internal)
    metadata = dict(info.metadata)
    if error.reason != info.reason:
        metadata["reason"] = info.reason
    if request.request_id:
        metadata["request_id"] = request.request_id
    made = error(
        status.message,
        fields={violation.field: violation.description for violation in bad.field_violations},
        retry_after=retry.retry_delay.ToNanoseconds() / 1e9
        if retry.DESCRIPTOR.full_name in found
        else None,
    )
    # Not as keywords: a server's metadata may have any key, also `fields`.
    made.metadata = metadata
    return made


_VALUES = {code.value[0]: code.value for code in grpc.StatusCode}
