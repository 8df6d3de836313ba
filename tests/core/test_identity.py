"""Principals: three spellings that turn into each other, and none to be mistaken for a role."""

import pytest

from appliance.core.errors import InvalidInput
from appliance.core.identity import (
    ANONYMOUS,
    Principal,
    PrincipalKind,
    parse_name,
    parse_spiffe,
    parse_subject,
    spiffe_id,
)

KINDS = [kind for kind in PrincipalKind if kind is not PrincipalKind.ANONYMOUS]


@pytest.mark.parametrize(
    ("kind", "subject", "name", "uri"),
    [
        (PrincipalKind.USER, "user:x1", "users/x1", "spiffe://c1/user/x1"),
        (
            PrincipalKind.SERVICE_ACCOUNT,
            "svc:x1",
            "serviceAccounts/x1",
            "spiffe://c1/service-account/x1",
        ),
        (PrincipalKind.NODE, "node:x1", "nodes/x1", "spiffe://c1/node/x1"),
        (PrincipalKind.GATEWAY, "gateway:x1", "gateways/x1", "spiffe://c1/gateway/x1"),
        (PrincipalKind.REPLICA, "replica:x1", "replicas/x1", "spiffe://c1/replica/x1"),
        (PrincipalKind.CONTROL, "control:x1", "controls/x1", "spiffe://c1/control/x1"),
    ],
)
def test_spellings(kind: PrincipalKind, subject: str, name: str, uri: str) -> None:
    principal = Principal(kind, "x1")
    assert (principal.subject, principal.name, spiffe_id("c1", principal)) == (subject, name, uri)
    assert parse_subject(subject) == parse_name(name) == parse_spiffe(uri, "c1") == principal


def test_nobody() -> None:
    assert (ANONYMOUS.subject, ANONYMOUS.name) == ("anonymous", "")
    assert parse_subject("anonymous") == ANONYMOUS
    with pytest.raises(InvalidInput):
        spiffe_id("c1", ANONYMOUS)


@pytest.mark.attack
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "identifier", ["", "role:owner", "a/b", "..", "A", "a\n", "*", "a b", "ä", "x" * 64]
)
def test_no_principal_with_an_id_that_means_more(kind: PrincipalKind, identifier: str) -> None:
    with pytest.raises(InvalidInput):
        Principal(kind, identifier)


@pytest.mark.attack
@pytest.mark.parametrize(
    "subject",
    [
        "",
        "role:owner",
        "rg:x",
        "user",
        "user:",
        ":alice",
        "User:alice",
        "user:alice:x",
        "anonymous:x",
    ],
)
def test_no_subject_of_a_caller(subject: str) -> None:
    with pytest.raises(InvalidInput):
        parse_subject(subject)


@pytest.mark.parametrize("name", ["", "users", "users/", "/alice", "roles/owner", "users/alice/x"])
def test_no_name_of_a_caller(name: str) -> None:
    with pytest.raises(InvalidInput):
        parse_name(name)


@pytest.mark.attack
@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://c2/node/n1",
        "spiffe://c1.evil/node/n1",
        "spiffe://c1/node/",
        "spiffe://c1/node/n1/x",
        "spiffe://c1/node/n1?x",
        "spiffe://c1//n1",
        "spiffe://c1/anonymous/n1",
        "spiffe://c1/NODE/n1",
        "SPIFFE://c1/node/n1",
        "https://c1/node/n1",
        " spiffe://c1/node/n1",
    ],
)
def test_another_identity_is_not_ours(uri: str) -> None:
    with pytest.raises(InvalidInput):
        parse_spiffe(uri, "c1")


def test_cluster_ids_are_ids() -> None:
    with pytest.raises(InvalidInput):
        spiffe_id("c1/node", Principal(PrincipalKind.NODE, "n1"))
    with pytest.raises(InvalidInput):
        parse_spiffe("spiffe:///node/n1", "")
