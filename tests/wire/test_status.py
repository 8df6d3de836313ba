"""Errors cross the wire and come out as the same class, whatever is in them."""

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.errors import (
    BY_REASON,
    ApplianceError,
    Denied,
    Exhausted,
    Internal,
    InvalidInput,
    Tampered,
    Unavailable,
    UnknownMethod,
)
from appliance.wire.status import from_rpc_error, to_status

TEXT = st.text(max_size=400)


def over_the_wire(error: ApplianceError, request_id: str = "r-1") -> ApplianceError:
    status = to_status(error, request_id)
    metadata = grpc.aio.Metadata(*status.trailing_metadata)
    failed = grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), metadata, status.details)
    return from_rpc_error(failed)


def foreign(code: str, details: str = "") -> ApplianceError:
    failed = grpc.aio.AioRpcError(
        grpc.StatusCode[code], grpc.aio.Metadata(), grpc.aio.Metadata(), details
    )
    return from_rpc_error(failed)


@pytest.mark.parametrize("reason", BY_REASON)
def test_every_class_comes_back(reason: str) -> None:
    sent = BY_REASON[reason]("a sentence", fields={"job.steps": "too many"}, retry_after=1.5, a="b")
    got = over_the_wire(sent)
    assert type(got) is type(sent)
    assert str(got) == "a sentence"
    assert got.fields == {"job.steps": "too many"}
    assert got.retry_after == 1.5
    assert got.metadata == {"a": "b", "request_id": "r-1"}


def test_details_follow_aip_193() -> None:
    status = to_status(InvalidInput("bad", fields={"name": "empty"}, object="o"), "r-9")
    assert status.code is grpc.StatusCode.INVALID_ARGUMENT
    (key, packed), plain = status.trailing_metadata
    assert key == "grpc-status-details-bin"
    assert plain == ("x-request-id", "r-9")
    failed = grpc.aio.AioRpcError(
        status.code, grpc.aio.Metadata(), grpc.aio.Metadata((key, packed)), status.details
    )
    info, request, bad = rpc_status.from_call(failed).details
    error = error_details_pb2.ErrorInfo()
    assert info.Unpack(error)
    assert (error.reason, error.domain, dict(error.metadata)) == (
        "INVALID_INPUT",
        "appliance",
        {"object": "o"},
    )
    assert request.TypeName() == "google.rpc.RequestInfo"
    assert bad.TypeName() == "google.rpc.BadRequest"


def test_no_retry_info_when_waiting_does_not_help() -> None:
    assert over_the_wire(Denied("no")).retry_after is None
    assert over_the_wire(Exhausted("busy", retry_after=0)).retry_after == 0


def test_a_reason_this_program_does_not_know_keeps_its_code() -> None:
    class Frozen(ApplianceError):
        code = "FAILED_PRECONDITION"
        reason = "PROJECT_FROZEN"

    got = over_the_wire(Frozen("thaw it"))
    assert (got.code, got.reason) == ("FAILED_PRECONDITION", "FAILED_PRECONDITION")
    assert got.metadata["reason"] == "PROJECT_FROZEN"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("UNAVAILABLE", Unavailable),
        ("CANCELLED", Unavailable),
        ("DEADLINE_EXCEEDED", Unavailable),
        ("UNIMPLEMENTED", UnknownMethod),
        ("RESOURCE_EXHAUSTED", Exhausted),
        ("DATA_LOSS", Tampered),
        ("UNKNOWN", Internal),
        ("INTERNAL", Internal),
    ],
)
def test_what_is_not_ours_goes_by_its_code(code: str, error: type[ApplianceError]) -> None:
    got = foreign(code, "socket closed")
    assert type(got) is error
    assert got.metadata == {"detail": "socket closed"}
    assert foreign(code).message


@pytest.mark.attack
def test_details_that_do_not_parse_or_contradict() -> None:
    status = to_status(Denied("no"), "r")
    for metadata, details in (
        (("grpc-status-details-bin", b"\xff\xff"), "no"),
        (status.trailing_metadata[0], "another sentence"),
    ):
        failed = grpc.aio.AioRpcError(
            grpc.StatusCode.PERMISSION_DENIED,
            grpc.aio.Metadata(),
            grpc.aio.Metadata(metadata),
            details,
        )
        assert type(from_rpc_error(failed)) is Denied


@pytest.mark.attack
def test_another_domain_cannot_name_our_reasons() -> None:
    status = to_status(Denied("no"), "r")
    forged = rpc_status.to_status(_with_domain(status, "example.com"))
    failed = grpc.aio.AioRpcError(
        forged.code,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(*forged.trailing_metadata),
        forged.details,
    )
    got = from_rpc_error(failed)
    assert type(got) is Denied
    assert "request_id" not in got.metadata


def _with_domain(status: grpc.Status, domain: str) -> object:
    failed = grpc.aio.AioRpcError(
        status.code,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(*status.trailing_metadata),
        status.details,
    )
    message = rpc_status.from_call(failed)
    info = error_details_pb2.ErrorInfo()
    message.details[0].Unpack(info)
    info.domain = domain
    message.details[0].Pack(info)
    return message


@pytest.mark.attack
@given(TEXT | st.just("\ud800"), st.dictionaries(TEXT, TEXT, max_size=40))
def test_any_text_fits_into_the_metadata(message: str, values: dict[str, str]) -> None:
    error = InvalidInput(message, fields=values)
    error.metadata = values
    status = to_status(error, "r" * 64)
    (_, packed), _ = status.trailing_metadata
    percent_encoded = len(status.details.encode()) * 3
    assert len(packed) * 4 / 3 + percent_encoded < 7900
    assert over_the_wire(error).code == "INVALID_ARGUMENT"


def test_a_huge_message_is_cut() -> None:
    got = over_the_wire(Denied("é" * 100_000, **{"k" * 9000: "v" * 9000}))
    assert got.message.endswith("é...")
    assert len(got.message.encode()) <= 800
    assert {len(key) for key in got.metadata} == {100, len("request_id")}
