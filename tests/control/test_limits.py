from __future__ import annotations

import pytest

from appliance.control import limits
from appliance.control.limits import SourceLimit, network_of
from appliance.core.errors import Exhausted


class Seconds:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("peer", "source"),
    [
        ("ipv4:10.0.0.7:51312", "10.0.0.7"),
        ("ipv6:[2001:db8:1:2:3::4]:443", "2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8:1:2:3::4%5D:443", "2001:db8:1:2::/64"),
        ("ipv6:[fe80::1%25eth0]:1", "fe80::/64"),
        ("unix:", "unix:"),
        ("ipv4:999.1.1.1:1", "ipv4:999.1.1.1:1"),
    ],
)
def test_a_source_is_an_address_or_a_network(peer: str, source: str) -> None:
    assert network_of(peer) == source


def test_a_burst_then_a_rate_for_each_source_alone() -> None:
    clock = Seconds()
    limit = SourceLimit(2.0, 3, clock)
    for _ in range(3):
        limit.take("ipv4:1.1.1.1:1")
    with pytest.raises(Exhausted) as refused:
        limit.take("ipv4:1.1.1.1:2")
    assert refused.value.retry_after == pytest.approx(0.5)
    limit.take("ipv4:2.2.2.2:1")
    clock.now += 0.5
    limit.take("ipv4:1.1.1.1:3")
    with pytest.raises(Exhausted):
        limit.take("ipv4:1.1.1.1:3")


@pytest.mark.attack
def test_an_ipv6_network_is_one_source() -> None:
    limit = SourceLimit(1.0, 2, Seconds())
    limit.take("ipv6:[2001:db8::1]:1")
    limit.take("ipv6:[2001:db8::2]:1")
    with pytest.raises(Exhausted):
        limit.take("ipv6:[2001:db8::3]:1")


@pytest.mark.attack
def test_many_sources_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_SOURCES", 10)
    limit = SourceLimit(1.0, 1, Seconds())
    for number in range(100):
        limit.take(f"ipv4:10.0.0.{number}:1")
    assert len(limit._buckets) == 10
