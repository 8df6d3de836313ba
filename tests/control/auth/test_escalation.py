"""Nobody takes over a right that he does not hold himself."""

import re
from pathlib import Path

import pytest

from appliance.control.auth import escalation, rules
from appliance.control.auth.policy import Policy, compile_policy
from appliance.control.auth.roles import Roles
from appliance.control.auth.rules import PolicyRows, RoleLink
from appliance.control.auth.scopes import EVERYWHERE, PLATFORM, phrase
from appliance.core.errors import Denied
from appliance.core.identity import Principal, PrincipalKind

ALICE = Principal(PrincipalKind.USER, "alice")
BOB = Principal(PrincipalKind.USER, "bob")


def policy_of(roles: Roles, *links: RoleLink) -> Policy:
    return compile_policy(PolicyRows(1, rules.rules_of(roles), links, {}), roles)


def test_equals_and_those_who_hold_more_may_act_for_another(roles: Roles) -> None:
    policy = policy_of(
        roles,
        RoleLink("user:alice", "administrator", "*"),
        RoleLink("user:alice", "administrator", "/platform"),
        RoleLink("user:bob", "owner", "red"),
    )
    escalation.check_acts_as(policy, roles, ALICE, BOB)
    escalation.check_acts_as(policy, roles, BOB, BOB)
    policy = policy_of(
        roles, RoleLink("user:alice", "owner", "red"), RoleLink("user:bob", "owner", "red")
    )
    escalation.check_acts_as(policy, roles, ALICE, BOB)


@pytest.mark.attack
def test_nobody_acts_for_somebody_who_holds_more(roles: Roles) -> None:
    policy = policy_of(
        roles,
        RoleLink("user:alice", "administrator", "*"),
        RoleLink("user:alice", "administrator", "/platform"),
        RoleLink("user:bob", "owner", "red"),
    )
    with pytest.raises(
        Denied, match=r"who may do more: you lack audit\.archive on the platform"
    ) as refused:
        escalation.check_acts_as(policy, roles, BOB, ALICE)
    assert re.search(r"and [0-9]+ more\. Ask", refused.value.message)


@pytest.mark.attack
def test_nobody_acts_for_somebody_who_holds_the_same_elsewhere(roles: Roles) -> None:
    policy = policy_of(
        roles, RoleLink("user:alice", "owner", "blue"), RoleLink("user:bob", "owner", "red")
    )
    with pytest.raises(Denied, match=r"bindings\.create in projects/red"):
        escalation.check_acts_as(policy, roles, ALICE, BOB)


@pytest.mark.attack
def test_nobody_gives_what_he_does_not_hold_there(roles: Roles) -> None:
    everywhere, red, blue = RoleLink("user:bob", "owner", EVERYWHERE), "red", "blue"
    policy = policy_of(roles, everywhere, RoleLink("user:alice", "owner", red))
    for domain in (red, blue, EVERYWHERE):
        escalation.check_gives(policy, roles, BOB, "owner", domain)
    escalation.check_gives(policy, roles, ALICE, "viewer", red)
    for who, role, domain in (
        (BOB, "administrator", PLATFORM),
        (BOB, "auditor", PLATFORM),
        (ALICE, "viewer", blue),
        (ALICE, "viewer", EVERYWHERE),
        (ALICE, "administrator", PLATFORM),
    ):
        with pytest.raises(Denied, match="nobody gives what he does not hold"):
            escalation.check_gives(policy, roles, who, role, domain)


@pytest.mark.attack
def test_a_role_without_rights_to_give_does_not_make_up_for_what_is_missing(roles: Roles) -> None:
    policy = policy_of(roles, RoleLink("user:bob", "developer", "red"))
    with pytest.raises(Denied) as refused:
        escalation.check_gives(policy, roles, BOB, "owner", "red")
    assert refused.value.message == (
        "users/bob may neither give nor take away role owner in projects/red: nobody gives what he "
        "does not hold, and you lack bindings.create in projects/red, bindings.delete in "
        "projects/red, bindings.list in projects/red, datasets.delete in projects/red, "
        "serviceAccounts.create in projects/red and 7 more. Ask an owner of projects/red or "
        "an administrator in all projects"
    )


@pytest.mark.attack
@pytest.mark.parametrize(("domain", "lacking"), [(PLATFORM, EVERYWHERE), (EVERYWHERE, PLATFORM)])
def test_who_lets_a_server_in_administers_the_platform_and_all_projects(
    roles: Roles, domain: str, lacking: str
) -> None:
    both = [RoleLink("user:alice", "administrator", where) for where in (PLATFORM, EVERYWHERE)]
    escalation.check_lets_in(policy_of(roles, *both), ALICE)
    policy = policy_of(roles, RoleLink("user:alice", "administrator", domain))
    with pytest.raises(Denied, match="gets keys of the work of every project") as refused:
        escalation.check_lets_in(policy, ALICE)
    assert f"nodes.createJoinToken {phrase(lacking)}." in refused.value.message


@pytest.mark.attack
def test_what_no_built_in_role_holds_is_given_by_administrators_of_everything(
    tmp_path: Path, roles: Roles
) -> None:
    file = tmp_path / "roles.yaml"
    file.write_text(
        "exporter: {description: Out., scopes: [project], permissions: [models.download]}"
    )
    file.chmod(0o644)
    known = roles.with_site(file)
    both = [RoleLink("user:alice", "administrator", where) for where in (PLATFORM, EVERYWHERE)]
    escalation.check_gives(policy_of(known, *both), known, ALICE, "exporter", "red")
    for held in (both[:1], both[1:], [RoleLink("user:alice", "owner", "red")]):
        with pytest.raises(Denied, match=r"you lack models\.download in projects/red"):
            escalation.check_gives(policy_of(known, *held), known, ALICE, "exporter", "red")
    # Who holds it hands it on where they may give roles at all: nothing new comes of that.
    holder = policy_of(known, RoleLink("user:bob", "exporter", "red"))
    escalation.check_gives(holder, known, BOB, "exporter", "red")
    with pytest.raises(Denied, match="you lack models"):
        escalation.check_gives(holder, known, BOB, "exporter", "blue")


@pytest.mark.attack
def test_who_may_only_give_roles_everywhere_gives_nobody_a_download(
    tmp_path: Path, roles: Roles
) -> None:
    file = tmp_path / "roles.yaml"
    file.write_text(
        "exporter: {description: Out., scopes: [project], permissions: [models.download]}\n"
        "personnel: {description: Gives., scopes: [platform, everywhere], "
        "permissions: [bindings.create]}"
    )
    file.chmod(0o644)
    known = roles.with_site(file)
    held = [RoleLink("user:bob", "personnel", where) for where in (PLATFORM, EVERYWHERE)]
    with pytest.raises(Denied, match=r"you lack models\.download in projects/red"):
        escalation.check_gives(policy_of(known, *held), known, BOB, "exporter", "red")
