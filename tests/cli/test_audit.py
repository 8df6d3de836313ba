"""`audit list`: a filter that can match nothing is not answered with nothing."""

import pytest

from appliance.api.audit.v1 import audit_service_pb2, record_pb2
from tests.fakes.command_line import Run
from tests.fakes.control_api import FakeApi

METHOD = "AuditService.ListRecords"
FOUND = audit_service_pb2.ListRecordsResponse(
    records=[record_pb2.Record(sequence=1, kind="result", outcome="DISK_FULL")]
)
NOTHING = audit_service_pb2.ListRecordsResponse()


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        (("--principal", "bob"), ("users/bob", "", "")),
        (("--principal", "users/bob"), ("users/bob", "", "")),
        (("--principal", "serviceAccounts/demo--app"), ("serviceAccounts/demo--app", "", "")),
        (("--principal", "control"), ("control", "", "")),
        (("--outcome", "permission_denied"), ("", "PERMISSION_DENIED", "")),
        (("--outcome", "ok"), ("", "OK", "")),
        (("--resource", "projects/demo"), ("", "", "projects/demo")),
    ],
)
def test_what_is_typed_is_what_records_have(
    command: Run, logged_in: FakeApi, typed: tuple[str, ...], sent: tuple[str, ...]
) -> None:
    logged_in.answers[METHOD] = NOTHING
    assert command("audit", "list", *typed).code == 0
    request = logged_in.calls[0].request
    assert (request.principal, request.outcome, request.resource) == sent


@pytest.mark.parametrize(
    "typed",
    [("--principal", "people/bob"), ("--principal", "Bob!"), ("--resource", "demo")],
)
def test_what_no_record_can_have_is_refused(
    command: Run, logged_in: FakeApi, typed: tuple[str, ...]
) -> None:
    assert command("audit", "list", *typed).code == 1
    assert logged_in.calls == []


def test_an_outcome_that_is_none_is_said(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers[METHOD] = NOTHING
    result = command("audit", "list", "--outcome", "foo")
    assert (result.code, "no record has the outcome" in result.err) == (1, True)
    logged_in.answers[METHOD] = FOUND
    assert command("audit", "list", "--outcome", "disk_full").code == 0


def test_what_was_done_offline_is_said(command: Run, logged_in: FakeApi) -> None:
    details = '{"by": "offline, uid 7", "made": {"token_id": "t1"}}'
    logged_in.answers[METHOD] = audit_service_pb2.ListRecordsResponse(
        records=[
            record_pb2.Record(sequence=2, kind="result", method="join-token", details=details),
            record_pb2.Record(sequence=1, kind="result", principal="users/bob", details="[]"),
        ]
    )
    first, second = command("audit", "list").out.splitlines()[1:]
    assert "offline, uid 7" in first
    assert "token_id=t1" in first
    assert "users/bob" in second
