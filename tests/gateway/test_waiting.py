"""Whose turn it is among answers that wait for one endpoint."""

from __future__ import annotations

import asyncio

from appliance.api.inference.v1 import generation_pb2
from appliance.gateway.ask import Ask
from appliance.gateway.waiting import Waiter, WaitingLine


def waiter(caller: str, *, begun: bool = False) -> Waiter:
    ask = Ask("e", [1], generation_pb2.Sampling(), [], 10, caller=caller)
    ask.generated += [2] * begun
    return Waiter(ask, asyncio.get_running_loop().create_future())


def order(line: WaitingLine) -> list[str]:
    """Everybody's turn."""
    found = []
    while (following := line.next()) is not None:
        line.take(following)
        found.append(following.ask.caller)
    return found


def filled(*waiters: Waiter) -> WaitingLine:
    line = WaitingLine()
    for each in waiters:
        line.add(each)
    return line


async def test_it_goes_round_among_callers() -> None:
    line = filled(*(waiter(caller) for caller in "aaaabc"))
    assert (len(line), line.new) == (6, 6)
    assert order(line) == ["a", "b", "c", "a", "a", "a"]
    assert len(line) == 0


async def test_what_has_begun_comes_first() -> None:
    line = filled(waiter("a"), waiter("b", begun=True), waiter("a", begun=True))
    assert (line.begun, line.new) == (2, 1)
    assert order(line) == ["b", "a", "a"]


async def test_who_leaves_is_forgotten_once() -> None:
    leaves, stays = waiter("a"), waiter("a")
    line = filled(leaves, stays)
    line.remove(leaves)
    line.remove(leaves)
    assert (len(line), line.next()) == (1, stays)


async def test_the_newest_of_whoever_has_the_most_goes() -> None:
    few, many, begun = waiter("a"), [waiter("b") for _ in range(3)], waiter("c", begun=True)
    line = filled(few, *many, begun)
    assert line.newest() is many[-1]
    assert line.newest("a") is few
    assert line.newest("c") is None
    assert filled(begun).newest() is None


async def test_a_full_line_has_room_for_who_has_fewer_waiting() -> None:
    line = filled(*(waiter(caller) for caller in "aaab"))
    newest = line.newest()
    assert [line.for_room(caller) for caller in "cba"] == [newest, newest, None]
    assert filled(waiter("a")).for_room("b") is None
    assert filled(waiter("a", begun=True)).for_room("b") is None
