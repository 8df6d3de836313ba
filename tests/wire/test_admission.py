"""Admission before identity: one source never holds or fills everything."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from appliance.core.errors import Exhausted
from appliance.wire import admission
from appliance.wire.admission import (
    OTHERS,
    Rates,
    Refusals,
    Refused,
    Shares,
    SourceLimit,
    StrangerSlots,
    source_of,
)


class Seconds:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("peer", "source"),
    [
        ("ipv4:10.0.0.7:51312", "10.0.0.7"),
        ("10.0.0.7", "10.0.0.7"),
        ("ipv6:[2001:db8:1:2:3::4]:443", "2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8:1:2:3::4%5D:443", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("ipv6:[fe80::1%25eth0]:1", "fe80::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix:", "unix:"),
        ("", ""),
        ("ipv4:999.1.1.1:1", "ipv4:999.1.1.1:1"),
    ],
)
def test_a_source_is_an_address_or_a_network(peer: str, source: str) -> None:
    assert source_of(peer) == source


@pytest.mark.attack
@pytest.mark.parametrize("peer", ["ipv6:[::ffff:10.0.0.7]:443", "::ffff:10.0.0.7"])
def test_an_ipv4_address_written_as_ipv6_is_the_same_source(peer: str) -> None:
    assert source_of(peer) == "10.0.0.7"


@pytest.mark.attack
def test_one_source_never_holds_every_place() -> None:
    shares = Shares(total=5, per_source=3)
    for _ in range(3):
        shares.take("a")
    for _ in range(100):
        with pytest.raises(Exhausted) as refused:
            shares.take("a")
    assert refused.value.message == (
        "too many calls wait here at this moment: wait 1 second, then repeat"
    )
    assert refused.value.retry_after == 1.0
    shares.take("b")
    shares.take("b")
    with pytest.raises(Exhausted):
        shares.take("c")
    shares.release("a")
    shares.take("c")
    assert shares.held == 5


@pytest.mark.attack
def test_sources_that_hold_nothing_take_no_memory() -> None:
    shares = Shares(total=1, per_source=1)
    for number in range(100):
        with shares.place(f"10.0.0.{number}"):
            pass
    shares.take("holder")
    for number in range(100):
        with pytest.raises(Exhausted):
            shares.take(f"10.0.1.{number}")
    assert list(shares._held) == ["holder"]


def test_a_place_comes_back_when_the_block_fails() -> None:
    shares = Shares(total=1, per_source=1)
    with pytest.raises(ZeroDivisionError), shares.place("a"):
        raise ZeroDivisionError
    assert shares.held == 0


class Ended(list[str]):
    """Notes whose place was taken away."""

    def of(self, name: str) -> Callable[[], None]:
        return lambda: self.append(name)


@pytest.mark.attack
def test_who_waits_longest_goes_for_who_comes() -> None:
    ended = Ended()
    places = StrangerSlots(total=10, per_source=2)
    for name in ("a1", "a2", "a3"):
        places.enter("a", ended.of(name))
    assert ended == ["a1"]
    assert len(places) == 2


@pytest.mark.attack
def test_many_addresses_push_out_themselves_and_not_the_one_that_comes() -> None:
    ended = Ended()
    places = StrangerSlots(total=6, per_source=3)
    for source in ("a", "b"):
        for number in range(3):
            places.enter(source, ended.of(f"{source}{number}"))
    mine = places.enter("honest", ended.of("honest"))
    assert ended == ["a0"]
    places.enter("c", ended.of("c0"))
    assert ended == ["a0", "b0"]
    places.keep_for_good(mine)
    places.leave(mine)
    places.leave(mine)
    assert len(places) == 5


def test_who_has_said_what_it_wants_goes_for_nobody() -> None:
    ended = Ended()
    places = StrangerSlots(total=2, per_source=1)
    first = places.enter("a", ended.of("a"))
    places.keep_for_good(first)
    with pytest.raises(Exhausted):
        places.enter("a", ended.of("again"))
    places.keep_for_good(places.enter("b", ended.of("b")))
    with pytest.raises(Exhausted) as refused:
        places.enter("c", ended.of("c"))
    assert refused.value.message == (
        "too many calls wait here at this moment: wait 1 second, then repeat"
    )
    places.leave(first)
    places.enter("c", ended.of("c"))
    assert ended == []


def test_a_burst_then_a_rate_for_each_source_alone() -> None:
    clock = Seconds()
    limit = SourceLimit(2.0, 3, clock)
    for _ in range(3):
        limit.take("ipv4:1.1.1.1:1")
    with pytest.raises(Exhausted) as refused:
        limit.take("ipv4:1.1.1.1:2")
    assert refused.value.retry_after == pytest.approx(0.5)
    assert refused.value.message.endswith("wait 1 second, then repeat")
    limit.take("ipv4:2.2.2.2:1")
    clock.now += 0.5
    limit.take("ipv4:1.1.1.1:3")
    with pytest.raises(Exhausted):
        limit.take("ipv4:1.1.1.1:3")


def test_a_rate_of_nothing_closes_the_way() -> None:
    limit = SourceLimit(0.0, 1, Seconds())
    limit.take("ipv4:1.1.1.1:1")
    with pytest.raises(Exhausted) as refused:
        limit.take("ipv4:1.1.1.1:1")
    assert refused.value.message.endswith("wait 3600 seconds, then repeat")


@pytest.mark.attack
def test_an_ipv6_network_is_one_source() -> None:
    limit = SourceLimit(1.0, 2, Seconds())
    limit.take("ipv6:[2001:db8::1]:1")
    limit.take("ipv6:[2001:db8::2]:1")
    with pytest.raises(Exhausted):
        limit.take("ipv6:[2001:db8::3]:1")


@pytest.mark.attack
def test_many_sources_take_bounded_memory() -> None:
    rates = Rates(1.0, 1, Seconds(), max_keys=10)
    for number in range(100):
        rates.wait(f"10.0.0.{number}")
    assert len(rates) == 10


def test_refusals_of_a_source_are_one_row() -> None:
    refusals = Refusals()
    for _ in range(1000):
        refusals.count("10.0.0.7", "UNAUTHENTICATED", "/s/GetUser")
    refusals.count("10.0.0.7", "INVALID_INPUT", "/s/GetUser")
    refusals.count("10.0.0.8", "RESOURCE_EXHAUSTED", "unknown")
    assert refusals.drain() == [
        Refused(
            "10.0.0.7",
            "",
            1001,
            {"UNAUTHENTICATED": 1000, "INVALID_INPUT": 1},
            {"/s/GetUser": 1001},
        ),
        Refused("10.0.0.8", "", 1, {"RESOURCE_EXHAUSTED": 1}, {"unknown": 1}),
    ]
    assert refusals.drain() == []


def test_a_known_principal_is_one_row_wherever_it_calls_from() -> None:
    refusals = Refusals()
    refusals.count("10.0.0.7", "RESOURCE_EXHAUSTED", "/s/GetUser", principal="users/eve")
    refusals.count("10.0.0.8", "RESOURCE_EXHAUSTED", "/s/GetUser", principal="users/eve")
    (row,) = refusals.drain()
    assert (row.source, row.principal, row.count) == ("", "users/eve", 2)


@pytest.mark.attack
def test_neither_sources_nor_names_make_the_table_grow() -> None:
    refusals = Refusals(max_rows=4)
    for number in range(1000):
        refusals.count(f"10.0.{number % 250}.{number // 250}", f"R{number}", f"/s/{number}")
    rows = refusals.drain()
    assert [row.source for row in rows][4:] == [OTHERS]
    assert sum(row.count for row in rows) == 1000
    for row in rows:
        assert len(row.reasons) <= admission.MAX_COUNTED_NAMES + 1
        assert len(row.methods) <= admission.MAX_COUNTED_NAMES + 1
        assert sum(row.reasons.values()) == sum(row.methods.values()) == row.count
