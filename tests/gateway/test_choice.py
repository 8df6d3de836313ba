"""Whose turn it is: fair, by stable ids, and never shifted by what others do."""

from __future__ import annotations

import random
from collections import Counter

from appliance.gateway.fleet import choose
from appliance.gateway.snapshot import ReplicaAddress


def place(name: str, epoch: int = 1) -> ReplicaAddress:
    return ReplicaAddress("projects/p/endpoints/e", name, epoch, f"127.0.0.1:{ord(name[0])}", name)


A, B, C = place("a"), place("b"), place("c")


class Turns:
    """What the fleet keeps."""

    def __init__(self) -> None:
        self.turns: dict[tuple[str, str], int] = {}
        self.count = 0

    def take(
        self, candidates: list[ReplicaAddress], tried: set[ReplicaAddress] | None = None
    ) -> ReplicaAddress | None:
        chosen = choose(candidates, tried or set(), self.turns)
        if chosen is not None:
            self.count += 1
            self.turns[chosen.endpoint, chosen.id] = self.count
        return chosen


def test_nobody_is_chosen_of_nobody() -> None:
    assert choose([], set(), {}) is None


def test_they_take_turns() -> None:
    turns = Turns()
    assert [turns.take([C, A, B]) for _ in range(7)] == [A, B, C, A, B, C, A]


def test_a_tried_one_comes_last() -> None:
    turns = Turns()
    assert [turns.take([A, B, C], {A}) for _ in range(4)] == [B, C, B, C]


def test_a_tried_one_is_better_than_none() -> None:
    assert Turns().take([A], {A}) == A


def test_a_restart_keeps_the_turn() -> None:
    turns = Turns()
    assert turns.take([A, B]) == A
    assert turns.take([place("a", 2), B]) == B
    assert turns.take([place("a", 3), B]) == place("a", 3)


def test_a_flapping_neighbour_shifts_nothing() -> None:
    chance = random.Random(7)
    turns, taken = Turns(), Counter[str]()
    for _ in range(10_000):
        there = [A, B, C] if chance.random() < 0.5 else [A, B]
        chosen = turns.take(there)
        assert chosen is not None
        taken[chosen.id] += 1
    assert sum(taken.values()) == 10_000
    assert abs(taken["a"] - taken["b"]) <= 1 + 10_000 // 100
    assert taken["c"] <= taken["a"]


def test_turns_are_of_an_endpoint() -> None:
    other = ReplicaAddress("projects/p/endpoints/f", "a", 1, "127.0.0.1:1", "a")
    turns = Turns()
    assert turns.take([A, B]) == A
    assert turns.take([other]) == other
    assert turns.take([A, B]) == B
