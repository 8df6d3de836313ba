"""Nobody takes over a right that he does not hold himself."""

import pytest

from appliance.control.auth import escalation, rules
from appliance.control.auth.policy import Policy, compile_policy
from appliance.control.auth.roles import Roles
from appliance.control.auth.rules import Link, Rows
from appliance.core.errors import Denied
from appliance.core.identity import Principal, PrincipalKind

ALICE = Principal(PrincipalKind.USER, "alice")
BOB = Principal(PrincipalKind.USER, "bob")


def policy_of(roles: Roles, *links: Link) -> Policy:
    return compile_policy(Rows(1, rules.rules_of(roles), links, {}), roles)


def test_equals_and_those_who_hold_more_may_act_for_another(roles: Roles) -> None:
    policy = policy_of(
        roles, Link("user:alice", "administrator", "*"), Link("user:bob", "owner", "red")
    )
    escalation.check_acts_as(policy, roles, ALICE, BOB)
    escalation.check_acts_as(policy, roles, BOB, BOB)
    policy = policy_of(roles, Link("user:alice", "owner", "red"), Link("user:bob", "owner", "red"))
    escalation.check_acts_as(policy, roles, ALICE, BOB)


@pytest.mark.attack
def test_nobody_acts_for_somebody_who_holds_more(roles: Roles) -> None:
    policy = policy_of(
        roles, Link("user:alice", "administrator", "*"), Link("user:bob", "owner", "red")
    )
    with pytest.raises(Denied, match=r"who may do more: you lack audit\.export") as refused:
        escalation.check_acts_as(policy, roles, BOB, ALICE)
    assert "and 37 more" in refused.value.message


@pytest.mark.attack
def test_nobody_acts_for_somebody_who_holds_the_same_elsewhere(roles: Roles) -> None:
    policy = policy_of(roles, Link("user:alice", "owner", "blue"), Link("user:bob", "owner", "red"))
    with pytest.raises(Denied, match=r"bindings\.create in projects/red"):
        escalation.check_acts_as(policy, roles, ALICE, BOB)
