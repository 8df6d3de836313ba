"""The links of a gateway by endpoint: who hears of a change, and which links are looked at."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

from appliance.api.inference.v1 import generation_pb2
from appliance.gateway.ask import Ask
from appliance.gateway.config import RoutingSettings
from appliance.gateway.fleet import ReplicaLinks
from appliance.gateway.slots import ReplicaSlots
from appliance.gateway.snapshot import ANY_VERSION, ReplicaAddress, Route, RoutingSnapshot


class Full:
    """A link to a replica that is full; counts who looks whether it is."""

    def __init__(self, place: ReplicaAddress) -> None:
        self.place = place
        self.looks = 0
        self.closed = self.connected = self.retired = False
        self.breaker = object()

    @property
    def ready(self) -> bool:
        self.looks += 1
        return True

    @property
    def full(self) -> bool:
        return True

    def tick(self, now: float, lag: float) -> None:
        """Nothing happens."""

    async def close(self) -> None:
        """Nothing is open."""


class Replicas(ReplicaLinks):
    """A fleet whose replicas are all full."""

    def __init__(self) -> None:
        super().__init__(lambda _: SimpleNamespace(), RoutingSettings())
        self.opened: list[Full] = []

    def _open(self, place: ReplicaAddress) -> Any:
        self.opened.append(Full(place))
        return self.opened[-1]

    def is_indexed(self) -> bool:
        """Whether each link is found at its endpoint, and no other is."""
        found = {place: link for links in self._of.values() for place, link in links.items()}
        return found == self._links and all(
            links and {place.endpoint for place in links} == {name}
            for name, links in self._of.items()
        )


def view(**replicas: int) -> RoutingSnapshot:
    """A view of endpoints with so many replicas each."""
    routes = {
        name: Route(
            name,
            "projects/p",
            ANY_VERSION,
            tuple(ReplicaAddress(name, str(each), 1, "127.0.0.1:1", "x") for each in range(count)),
        )
        for name, count in replicas.items()
    }
    return RoutingSnapshot(1, b"", {}, {}, routes, {}, 0)


async def test_a_change_at_a_link_is_looked_at_by_who_waits_for_its_endpoint() -> None:
    fleet = Replicas()
    places = ReplicaSlots(fleet, RoutingSettings(), time.monotonic)
    fleet.apply(view(a=2, b=2, c=2))
    asks = [Ask(name, [1], generation_pb2.Sampling(), [], 10) for name in "abc"]
    asking = [asyncio.create_task(places.place(ask)) for ask in asks]
    await asyncio.sleep(0)
    assert places.waiting == 3
    for told, looked in (("b", {"b"}), ("x", set()), (None, {"a", "b", "c"})):
        for link in fleet.opened:
            link.looks = 0
        fleet._notify(told)
        assert {link.place.endpoint for link in fleet.opened if link.looks} == looked
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


async def test_links_are_found_by_their_endpoint_however_they_come_and_go() -> None:
    fleet = Replicas()
    fleet.apply(view(a=2, b=1))
    assert fleet.is_indexed()
    fleet.renew()
    for link in fleet.opened[3:]:
        link.connected = True
    fleet.tick(0.0, 0.0)
    assert fleet.is_indexed()
    assert set(fleet._links.values()) == set(fleet.opened[3:])
    fleet.apply(view(a=1, c=1))
    assert fleet.is_indexed()
    for link in fleet.opened:
        link.closed = link.retired
    fleet.tick(0.0, 0.0)
    assert fleet.is_indexed()
    assert sorted(fleet._of) == ["a", "c"]
    await fleet.close()
    assert fleet.is_indexed()
    assert not fleet._links
