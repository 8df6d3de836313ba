"""The part of the door that decides, without a door."""

from __future__ import annotations

from datetime import timedelta

import pytest

from appliance.control.auth.credentials import FRESH
from appliance.control.door.access import Access
from appliance.control.door.resource_scopes import ResourceScopes
from appliance.control.services.common.caller import Caller
from appliance.core.errors import Denied, FreshMfaRequired
from appliance.core.identity import Principal, PrincipalKind
from appliance.wire.rules import AccessRule
from tests.fakes.lab import Lab

ALICE = Principal(PrincipalKind.USER, "alice")
APPLICATION = Principal(PrincipalKind.SERVICE_ACCOUNT, "demo--app")


@pytest.fixture
def access(lab: Lab) -> Access:
    return Access(lab.base.policies, ResourceScopes(lab.base.database), lab.time.wall)


@pytest.mark.attack
def test_a_rule_that_names_nothing_lets_nobody_in(access: Access) -> None:
    for principal in (ALICE, APPLICATION):
        with pytest.raises(Denied, match="no access rule allows this call"):
            access.decide(Caller(principal), AccessRule("/a/B", permission=""), "projects/demo")


@pytest.mark.attack
def test_a_second_factor_is_fresh_for_minutes_and_of_a_person(access: Access, lab: Lab) -> None:
    rule, now = AccessRule("/a/B", permission="a.b", fresh_mfa=True), lab.time.wall()
    access.check_fresh_mfa(Caller(ALICE, mfa_time=now - FRESH), rule)
    for time in (None, now - FRESH - timedelta(milliseconds=1), now + timedelta(days=1)):
        with pytest.raises(FreshMfaRequired, match="a code from your authenticator"):
            access.check_fresh_mfa(Caller(ALICE, mfa_time=time), rule)
    for time in (None, now):
        with pytest.raises(FreshMfaRequired, match="it needs a person"):
            access.check_fresh_mfa(Caller(APPLICATION, mfa_time=time), rule)
