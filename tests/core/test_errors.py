"""The exception tree: every error has one code and one reason, and says them when it is raised."""

import inspect

import grpc
import pytest

from appliance.core import errors

ALL = [
    error
    for _, error in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error, errors.ApplianceError) and error is not errors.ApplianceError
]


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (errors.InvalidInput, "INVALID_ARGUMENT", "INVALID_INPUT"),
        (errors.NotFound, "NOT_FOUND", "RESOURCE_NOT_FOUND"),
        (errors.AlreadyExists, "ALREADY_EXISTS", "ALREADY_EXISTS"),
        (errors.Denied, "PERMISSION_DENIED", "PERMISSION_DENIED"),
        (errors.FreshMfaRequired, "PERMISSION_DENIED", "FRESH_MFA_REQUIRED"),
        (errors.Unauthenticated, "UNAUTHENTICATED", "UNAUTHENTICATED"),
        (errors.MfaRequired, "UNAUTHENTICATED", "MFA_REQUIRED"),
        (errors.Conflict, "ABORTED", "EDIT_CONFLICT"),
        (errors.LeaseLost, "ABORTED", "LEASE_LOST"),
        (errors.FailedPrecondition, "FAILED_PRECONDITION", "FAILED_PRECONDITION"),
        (errors.Exhausted, "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"),
        (errors.Unavailable, "UNAVAILABLE", "UNAVAILABLE"),
        (errors.Untrusted, "UNAVAILABLE", "UNTRUSTED_SERVER"),
        (errors.AuditUnavailable, "UNAVAILABLE", "AUDIT_UNAVAILABLE"),
        (errors.Cancelled, "CANCELLED", "CANCELLED"),
        (errors.UnknownMethod, "UNIMPLEMENTED", "UNKNOWN_METHOD"),
        (errors.Tampered, "DATA_LOSS", "OBJECT_TAMPERED"),
        (errors.Stale, "DATA_LOSS", "STALE_OBJECT"),
        (errors.Internal, "INTERNAL", "INTERNAL"),
    ],
)
def test_code_and_reason(error: type[errors.ApplianceError], code: str, reason: str) -> None:
    assert (error.code, error.reason) == (code, reason)
    assert errors.BY_REASON[reason] is error


def test_every_error_can_be_found_by_its_reason() -> None:
    assert set(ALL) == set(errors.BY_REASON.values())


def test_codes_are_those_of_grpc() -> None:
    assert {error.code for error in ALL} <= {code.name for code in grpc.StatusCode}


def test_what_it_carries() -> None:
    error = errors.Tampered("shard 3 was changed", fields={"a": "b"}, retry_after=2.5, object=7)
    assert str(error) == "shard 3 was changed"
    assert error.metadata == {"object": "7"}
    assert error.fields == {"a": "b"}
    assert error.retry_after == 2.5
