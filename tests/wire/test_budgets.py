"""Budgets after identity: of one caller, by class of method."""

from __future__ import annotations

import pytest

from appliance.api.auth.v1 import auth_service_pb2
from appliance.api.data.v1 import dataset_service_pb2
from appliance.api.jobs.v1 import job_service_pb2
from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import Exhausted
from appliance.core.identity import Principal, PrincipalKind
from appliance.wire import budgets
from appliance.wire.admission import CallerLimits
from appliance.wire.budgets import MethodClass, Seats, class_of
from appliance.wire.rules import AccessRule, rules_of

ALICE = Principal(PrincipalKind.USER, "alice")
APP = Principal(PrincipalKind.SERVICE_ACCOUNT, "app")
GATEWAY = Principal(PrincipalKind.GATEWAY, "gateway-1")
RULES = {
    path.rpartition("/")[2]: rule
    for module in (auth_service_pb2, dataset_service_pb2, job_service_pb2, routing_service_pb2)
    for path, rule in rules_of(module.DESCRIPTOR.services_by_name.values()).items()
}


class Seconds:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("Login", MethodClass.LOG_IN),
        ("VerifyTotp", MethodClass.LOG_IN),
        ("WhoAmI", MethodClass.READ),
        ("GetJob", MethodClass.READ),
        ("ListJobMetrics", MethodClass.READ),
        ("Logout", MethodClass.CHANGE),
        ("CreateJob", MethodClass.CHANGE),
        ("CancelJob", MethodClass.CHANGE),
        ("UploadDatasetVersion", MethodClass.UPLOAD),
        ("WatchJob", MethodClass.WATCH),
        ("WatchRouting", MethodClass.WATCH),
    ],
)
def test_the_class_follows_from_the_rule(method: str, expected: MethodClass) -> None:
    assert class_of(RULES[method]) is expected


def test_what_reads_is_said_by_the_proto_and_not_by_a_name() -> None:
    assert class_of(AccessRule("/x.Jobs/SearchJobs", "jobs.list", reads=True)) is MethodClass.READ
    assert class_of(AccessRule("/x.Jobs/GetOrCreateJob", "jobs.create")) is MethodClass.CHANGE


@pytest.mark.attack
def test_a_flood_of_reads_stops_neither_changes_nor_anybody_else() -> None:
    clock = Seconds()
    seats = Seats(CallerLimits(reads_per_second=2.0, read_burst=3), clock)
    for _ in range(3):
        with seats.seat(ALICE, MethodClass.READ):
            pass
    for _ in range(100):
        with pytest.raises(Exhausted) as refused, seats.seat(ALICE, MethodClass.READ):
            pass
    assert refused.value.message == (
        "you make more read calls than one caller may: wait 1 second, then repeat"
    )
    assert refused.value.retry_after == pytest.approx(0.5)
    with seats.seat(ALICE, MethodClass.CHANGE), seats.seat(APP, MethodClass.READ):
        pass
    clock.now += 0.5
    with seats.seat(ALICE, MethodClass.READ):
        pass


@pytest.mark.attack
def test_seats_are_held_until_the_call_ends() -> None:
    seats = Seats(CallerLimits(calls=1), Seconds())
    with seats.seat(ALICE, MethodClass.WATCH):
        with pytest.raises(Exhausted) as refused, seats.seat(ALICE, MethodClass.WATCH):
            pass
        assert refused.value.message.startswith("you have as many watch calls in work as one")
        with seats.seat(APP, MethodClass.WATCH):
            pass
    with seats.seat(ALICE, MethodClass.WATCH):
        pass


def test_machines_have_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "MACHINE_BURST", 5)
    seats = Seats(CallerLimits(read_burst=1, calls=1), Seconds())
    for _ in range(5):
        with seats.seat(GATEWAY, MethodClass.READ):
            pass
    with pytest.raises(Exhausted), seats.seat(GATEWAY, MethodClass.READ):
        pass
