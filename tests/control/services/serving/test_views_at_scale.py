"""Views of 10,000 principals and 200 endpoints: what is sent, and what is decided anew."""

from __future__ import annotations

from collections import Counter

import pytest

from appliance.api.serving.v1 import routing_service_pb2 as rpc
from appliance.control.auth.engine import KEPT_DECISIONS, PolicyEngine
from appliance.control.auth.policy import Policy
from appliance.control.auth.rules import RoleLink
from appliance.control.services.access.bindings import Bindings
from appliance.control.services.serving import routing
from appliance.control.services.serving.routing_view import MESSAGE_BYTES, HeldView
from appliance.control.store import tables
from appliance.gateway.view import View
from tests.fakes.crowd import PROJECTS, fill
from tests.fakes.lab import Lab

PRINCIPALS, ENDPOINTS = 10_000, 200


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often Casbin was asked, and of how many principals rights were made."""
    counts = Counter[str]()
    decide, rights_of = PolicyEngine.decide, routing.rights_of

    def counting(*arguments: object) -> bool:
        counts["decisions"] += 1
        return decide(*arguments)  # type: ignore[arg-type]  # whatever it is given

    def made(policy: Policy, principal: object) -> object:
        counts["principals"] += 1
        return rights_of(policy, principal)  # type: ignore[arg-type]  # whatever it is given

    monkeypatch.setattr(PolicyEngine, "decide", counting)
    monkeypatch.setattr(routing, "rights_of", made)
    return counts


def size(messages: list[rpc.RoutingView]) -> int:
    return sum(message.ByteSize() for message in messages)


def take(view: View, messages: list[rpc.RoutingView]) -> None:
    for message in messages:
        view.take(message)


def change(lab: Lab, number: int, held: HeldView) -> tuple[HeldView, list[rpc.RoutingView]]:
    """Give one application a role in its project; what gateways are sent."""
    base = lab.base
    bindings = Bindings(base.database, base.changes, base.policies, base.events, base.clock)
    with lab.database.write() as transaction:
        link = RoleLink(f"svc:app{number}", "developer", f"p{number % PROJECTS}")
        bindings.bind(transaction, link, "users/alice")
    return lab.routing.messages(held)


def test_ten_thousand_principals_and_two_hundred_endpoints(lab: Lab, counted: Counter[str]) -> None:
    fill(lab, PRINCIPALS, ENDPOINTS)
    counted.clear()
    held, whole = lab.routing.messages(None)
    # People plus endpoints, never people times endpoints, of which there are two million.
    assert sum(len(message.rights) for message in whole) == PRINCIPALS
    assert size(whole) < 200 * (PRINCIPALS + 2 * ENDPOINTS)
    assert max(message.ByteSize() for message in whole) <= MESSAGE_BYTES + 4096
    # All hold the same roles, so one decision is theirs.
    assert counted == {"decisions": 1, "principals": PRINCIPALS}
    view = View(10.0)
    take(view, whole)
    assert len(view.current().routes) == ENDPOINTS
    assert view.current().may("serviceAccounts/app77", "projects/p17", "endpoints.infer")

    # A revoked binding is one line, and nobody else is decided again.
    counted.clear()
    with lab.database.write() as transaction:
        mine = tables.binding.c.subject == "svc:app77"
        transaction.run(tables.binding.delete().where(mine))
        lab.base.policies.after_revoking(transaction, RoleLink("svc:app77", "inference", "p17"))
    held, (message,) = lab.routing.messages(held)
    assert counted["principals"] == 1
    assert [right.principal for right in message.gone_rights] == ["serviceAccounts/app77"]
    assert message.ByteSize() < 300
    take(view, [message])
    assert not view.current().may("serviceAccounts/app77", "projects/p17", "endpoints.infer")

    # What says the same is not sent at all.
    counted.clear()
    held, (message,) = change(lab, 78, held)
    assert counted["principals"] == 1
    assert (message.unchanged, message.ByteSize() < 100) == (True, True)


def test_more_decisions_than_are_kept_change_nothing(
    lab: Lab, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is decided is kept with the principal, so a full memory of decisions is no storm."""
    monkeypatch.setattr("appliance.control.auth.engine.KEPT_DECISIONS", 1)
    assert KEPT_DECISIONS > 1
    fill(lab, 300, 10)
    held, _ = lab.routing.messages(None)
    for number in range(10):
        counted.clear()
        held, _ = change(lab, number, held)
        assert counted["principals"] == 1
        assert counted["decisions"] <= len(routing.PERMISSIONS)
