"""Floods against a real appliance, in small: who is known gets in, nothing of them stays."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from bench.flood.caller import PACE, caller_of
from bench.flood.flooder import Attacker, burst
from bench.flood.floods import FLOODS
from bench.flood.stage import Stage, stage
from tests.fakes.gateway import until

ACTS = 300
BY_NAME = {flood.name: flood for flood in FLOODS}


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("flood")) as made:
        made.strangers_records()
        yield made


def held(made: Stage, process: str) -> tuple[int, int]:
    found = made.held(process)
    return found["descriptors"], found["tasks"]


@pytest.mark.attack
@pytest.mark.parametrize(
    ("name", "listener"),
    [
        ("held_calls", "control"),
        ("held_calls", "gateway"),
        ("health_watches", "control"),
        ("malformed_messages", "control"),
        ("bad_tokens", "control"),
        ("resets", "control"),
        ("giant_metadata", "control"),
        ("compressed_bombs", "control"),
        ("silent_connections", "openai"),
        ("half_hellos", "openai"),
        ("slow_bodies", "openai"),
        ("malformed_messages", "openai"),
        ("bad_tokens", "openai"),
        ("bad_tokens", "gateway"),
        ("resets", "openai"),
        ("giant_metadata", "openai"),
    ],
)
async def test_a_flood_leaves_nothing(appliance: Stage, name: str, listener: str) -> None:
    process = appliance.process_of(listener)
    caller = caller_of(appliance, listener)
    # Threads, and connections to the database, come with the first calls at a time.
    await asyncio.gather(*(caller.call(fresh=False) for _ in range(32)))
    before = held(appliance, process)
    appliance.strangers_records()
    attacker = Attacker(appliance.target(listener), "127.0.0.2")
    flood = asyncio.create_task(
        burst(attacker, BY_NAME[name].act, 1000, ACTS, lambda: attacker.tally.acts >= ACTS)
    )
    while not flood.done():
        await caller.call(fresh=True)
        # As often as the caller of the bench: as fast as it can, a quick machine opens more
        # connections a second than one source may.
        await asyncio.sleep(1 / PACE)
    await flood
    assert attacker.tally.acts == ACTS
    await caller.call(fresh=True)
    await caller.close()
    assert caller.lost == []
    assert appliance.strangers_records() <= 10
    most = tuple(number + 2 for number in before)
    await until(lambda: all(map(int.__le__, held(appliance, process), most)), 30)
    assert appliance.processes[process].poll() is None
