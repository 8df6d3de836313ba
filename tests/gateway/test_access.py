"""Who may ask what, decided from a snapshot."""

from __future__ import annotations

import time

import pytest

from appliance.api.serving.v1 import routing_service_pb2
from appliance.control.auth import tokens
from appliance.core.errors import Internal, NotFound, Unauthenticated, Unavailable
from appliance.crypto.tokens import Parsed, TokenKind, text_of
from appliance.gateway import access
from appliance.gateway.snapshot import RoutingSnapshot
from appliance.gateway.view import View
from tests.fakes.routing import ENDPOINT, KEY, Control, seal

OTHER = "projects/q/endpoints/secret"


def made() -> tuple[Control, str]:
    control = Control()
    token = control.issue()
    control.serve()
    control.serve(endpoint=OTHER)
    return control, token


def test_a_token_says_who() -> None:
    control, token = made()
    principal, _ = access.identify(RoutingSnapshot.of(seal(control.view)), token, time.time())
    assert principal == "serviceAccounts/app"


@pytest.mark.attack
def test_what_is_not_a_live_token_is_refused() -> None:
    control, token = made()
    snapshot = RoutingSnapshot.of(seal(control.view))
    minted = tokens.mint(TokenKind.SERVICE, KEY).text
    parts = token.split("_")
    swapped = text_of(Parsed(TokenKind.SERVICE, parts[2], minted.split("_")[3]))
    as_session = text_of(Parsed(TokenKind.JOIN, parts[2], parts[3]))
    for wrong in ("", "x", minted, swapped, as_session, token[:-1], token.upper(), token + " "):
        with pytest.raises(Unauthenticated):
            access.identify(snapshot, wrong, time.time())


@pytest.mark.attack
def test_a_token_ends() -> None:
    control = Control()
    token = control.issue(expires=1000)
    snapshot = RoutingSnapshot.of(seal(control.view))
    assert access.identify(snapshot, token, 999.9)[0] == "serviceAccounts/app"
    with pytest.raises(Unauthenticated):
        access.identify(snapshot, token, 1000)


@pytest.mark.attack
def test_an_answer_runs_on_only_while_its_token_its_owner_and_the_right_are_there() -> None:
    control = Control()
    token = control.issue(expires=1000)
    control.serve()
    control.serve(endpoint=OTHER)
    snapshot = RoutingSnapshot.of(seal(control.view))
    principal, credential = access.identify(snapshot, token, 1)
    access.recheck(snapshot, credential, principal, ENDPOINT, 999.9)
    for credential_, principal_, now in (
        (credential, principal, 1000),
        (credential, "serviceAccounts/other", 1),
        ("0" * 16, principal, 1),
    ):
        with pytest.raises(Unauthenticated):
            access.recheck(snapshot, credential_, principal_, ENDPOINT, now)
    with pytest.raises(NotFound):
        access.recheck(snapshot, credential, principal, OTHER, 1)


@pytest.mark.attack
def test_no_right_and_no_endpoint_look_the_same() -> None:
    control, _ = made()
    snapshot = RoutingSnapshot.of(seal(control.view))
    said = []
    for name in (OTHER, "projects/q/endpoints/nothere"):
        with pytest.raises(NotFound) as raised:
            access.route(snapshot, "serviceAccounts/app", name)
        said.append(raised.value.message.replace(name, "X"))
    assert said[0] == said[1]
    assert access.allowed(snapshot, "serviceAccounts/app") == [ENDPOINT]
    assert access.allowed(snapshot, "users/nobody") == []


@pytest.mark.parametrize("header", [None, "", "sla_svc_x", "Basic YQ==", b"Bearer x"])
def test_only_a_bearer_header_is_one(header: str | bytes | None) -> None:
    with pytest.raises(Unauthenticated):
        access.bearer(header)


def test_the_scheme_is_not_case_sensitive() -> None:
    assert access.bearer("bearer abc") == access.bearer("Bearer abc") == "abc"


def test_secrets_are_in_no_repr() -> None:
    control, _ = made()
    shown = repr(RoutingSnapshot.of(seal(control.view)))
    assert str(KEY) not in shown
    assert "digest" not in shown


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.attack
def test_an_old_view_decides_nothing() -> None:
    clock = Clock()
    view = View(0, clock)
    with pytest.raises(Unavailable, match="since it started"):
        view.current()
    view.take(routing_service_pb2.RoutingView(version=3, digest=bytes(32)))
    clock.now += 10
    assert view.current().version == 3
    clock.now += 0.1
    with pytest.raises(Unavailable, match="for 10 s") as raised:
        view.current()
    assert raised.value.retry_after is not None
    view.take(routing_service_pb2.RoutingView(version=3, unchanged=True))
    assert view.current().version == 3


def test_a_stale_view_decides_for_as_long_as_the_site_says_and_says_so() -> None:
    clock = Clock()
    view = View(900.0, clock)
    assert (view.decides, view.stale) == (False, False)
    view.take(routing_service_pb2.RoutingView(version=3, digest=bytes(32)))
    for age, decides, stale in ((10, True, False), (11, True, True), (900, True, True)):
        clock.now = 100.0 + age
        assert (view.decides, view.stale) == (decides, stale), age
        assert view.current().version == 3
    clock.now += 1
    assert (view.decides, view.stale) == (False, False)
    with pytest.raises(Unavailable, match="for 901 s"):
        view.current()


def test_a_sign_of_life_of_another_view_is_refused() -> None:
    view = View(10.0, Clock())
    message = routing_service_pb2.RoutingView(version=4, unchanged=True)
    with pytest.raises(Internal):
        view.take(message)
    view.take(routing_service_pb2.RoutingView(version=3, digest=bytes(32)))
    with pytest.raises(Internal):
        view.take(message)
