"""A view that arrives in parts and in changes: whole, or not at all."""

from __future__ import annotations

import random

import pytest

from appliance.api.serving.v1 import routing_service_pb2 as rpc
from appliance.control.services.serving import routing_view
from appliance.control.services.serving.routing_view import HeldView, key_of
from appliance.core.errors import Internal
from appliance.gateway.view import View
from appliance.wire.routing import ViewEntry

KEY = bytes(32)
START = HeldView(1, KEY, {})


def credential(number: int, *, ends: int = 1000) -> rpc.Credential:
    made = rpc.Credential(id=f"c{number:06}", digest=b"d" * 32, principal=f"users/u{number}")
    made.expire_time.seconds = ends
    return made


def right(number: int, *permissions: str) -> rpc.Right:
    return rpc.Right(principal=f"users/u{number}", project="projects/p", permissions=permissions)


def route(number: int, length: int = 128) -> rpc.Route:
    name = f"projects/p/endpoints/e{number}"
    return rpc.Route(endpoint=name, project="projects/p", max_sequence_length=length)


def held(before: HeldView, *entries: ViewEntry) -> HeldView:
    return before.followed_by(before.version + 1, {key_of(entry): entry for entry in entries})


def follow(view: View, before: HeldView | None, now: HeldView) -> None:
    for message in now.since(before):
        view.take(message)


def test_a_change_says_only_what_changed() -> None:
    first = held(START, credential(1), credential(2), right(1, "endpoints.infer"), route(1))
    second = held(first, credential(1), credential(2, ends=5), right(2, "endpoints.infer"))
    (change,) = second.since(first)
    assert [each.id for each in change.credentials] == ["c000002"]
    assert [each.principal for each in change.rights] == ["users/u2"]
    assert [each.principal for each in change.gone_rights] == ["users/u1"]
    assert list(change.gone_routes) == ["projects/p/endpoints/e1"]
    view = View(10.0)
    follow(view, None, first)
    follow(view, first, second)
    snapshot = view.current()
    assert snapshot.version == second.version
    assert snapshot.credentials["c000002"].expires == 5
    assert (set(snapshot.rights), snapshot.routes) == ({("users/u2", "projects/p")}, {})


def test_a_long_walk_of_changes_leaves_what_is_held() -> None:
    chance, view, now = random.Random(5), View(10.0), START
    follow(view, None, now)
    for _ in range(200):
        makers = (
            lambda n: credential(n, ends=chance.randrange(5)),
            lambda n: right(n, *chance.choice([(), ("endpoints.infer",)])),
            lambda n: route(n, chance.randrange(1, 4)),
        )
        entries = [make(n) for make in makers for n in range(6) if chance.random() < 0.7]
        before, now = now, held(now, *entries)
        if now is not before:
            follow(view, before, now)
        anew = View(10.0)
        follow(anew, None, now)
        assert view.current() == anew.current()


def test_no_message_is_so_large_that_answers_stand_still_for_it() -> None:
    """A gateway takes in 64 KiB of credentials in some 10 ms; 1 MiB took it 100 to 300."""
    messages = held(START, *(credential(number) for number in range(5_000))).since(None)
    assert max(message.ByteSize() for message in messages) <= 72 << 10
    assert sum(len(message.credentials) for message in messages) == 5_000


def test_a_large_view_comes_in_parts_and_counts_when_it_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(routing_view, "MESSAGE_BYTES", 5_000)
    large = held(START, *(credential(number) for number in range(1000)))
    messages = large.since(None)
    assert len(messages) > 5
    assert max(message.ByteSize() for message in messages) < 6_000
    view = View(10.0)
    said = [view.take(message) for message in messages]
    assert said == [False] * (len(messages) - 1) + [True]
    assert len(view.current().credentials) == 1000
    # Everything goes at once, in parts, too: what is left half way is what was there.
    changes = held(large).since(large)
    assert len(changes) > 1
    for message in changes[:-1]:
        assert not view.take(message)
        assert len(view.current().credentials) == 1000
    assert view.take(changes[-1])
    assert view.current().credentials == {}


@pytest.mark.attack
def test_a_lost_change_asks_for_everything() -> None:
    first = held(START, credential(1), right(1, "endpoints.infer"))
    second = held(first, credential(1))
    third = held(second, credential(1), credential(2))
    view = View(10.0)
    follow(view, None, first)
    with pytest.raises(Internal, match="changes a version of the view which we lack"):
        follow(view, second, third)
    assert view.current().version == first.version
    follow(view, None, third)
    assert view.current().rights == {}


@pytest.mark.attack
@pytest.mark.parametrize("what", ["lost", "too much", "altered", "no digest"])
def test_what_is_not_what_the_control_plane_holds_is_not_used(what: str) -> None:
    first = held(START, credential(1), right(1, "endpoints.infer"))
    second = held(first, credential(1), credential(2))
    view = View(10.0)
    follow(view, None, first)
    (change,) = second.since(first)
    if what == "lost":
        change.credentials.pop()
    elif what == "too much":
        change.gone_credentials.append("c000001")
    elif what == "altered":
        change.credentials[0].principal = "users/u9"
    else:
        change.digest = b""
    with pytest.raises(Internal, match="is not what the control plane holds"):
        view.take(change)
    assert view.current().version == first.version


@pytest.mark.attack
def test_a_stream_that_broke_half_way_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(routing_view, "MESSAGE_BYTES", 100)
    first = held(START, *(credential(number) for number in range(10)))
    view = View(10.0)
    parts = first.since(None)
    view.take(parts[0])
    second = held(first, credential(1))
    with pytest.raises(Internal, match="before it ended another"):
        follow(view, None, second)
    view.take(parts[0])
    view.begin()
    follow(view, None, second)
    assert set(view.current().credentials) == {"c000001"}
