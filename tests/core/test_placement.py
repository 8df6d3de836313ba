"""Gang placement: all ranks at once or none, few nodes, small holes first."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.errors import Exhausted, FailedPrecondition, InvalidInput
from appliance.core.placement import Demand, NodeCapacity, Placement, check_feasible, place

GIB = 1 << 30


def node(
    name: str, devices: int, used: tuple[int, ...] = (), gib: int = 64, gib_used: int = 0
) -> NodeCapacity:
    return NodeCapacity(name, devices, gib * GIB, frozenset(used), gib_used * GIB)


def test_one_node_when_one_is_enough_and_the_tightest() -> None:
    nodes = [node("a", 8), node("b", 4), node("c", 2)]
    assert place(Demand(4), nodes) == [Placement("b", 4, (0, 1, 2, 3))]


def test_free_devices_only() -> None:
    assert place(Demand(2), [node("a", 4, used=(0, 2))]) == [Placement("a", 2, (1, 3))]


def test_spread_over_few_nodes() -> None:
    nodes = [node("a", 2), node("b", 4), node("c", 3), node("d", 2)]
    assert place(Demand(6), nodes) == [Placement("b", 4, (0, 1, 2, 3)), Placement("a", 2, (0, 1))]


def test_a_limit_per_node_spreads() -> None:
    nodes = [node("a", 4), node("b", 4)]
    assert place(Demand(2, ranks_per_node_max=1), nodes) == [
        Placement("a", 1, (0,)),
        Placement("b", 1, (0,)),
    ]


def test_memory_counts() -> None:
    nodes = [node("a", 8, gib=16, gib_used=9), node("b", 2, gib=16)]
    assert place(Demand(2, memory_per_rank=4 * GIB), nodes) == [Placement("b", 2, (0, 1))]


def test_nothing_free() -> None:
    with pytest.raises(Exhausted) as raised:
        place(Demand(4, memory_per_rank=2 * GIB), [node("a", 4, used=(0,)), node("b", 0)])
    assert str(raised.value) == (
        "waiting for 4 ranks with 2.0 GiB each: 3 can start now on 2 nodes"
    )
    assert raised.value.metadata == {"needed": "4", "free": "3"}


NO_TORCH = {"train": "torch is not installed: install it", "prepare": "", "replica": "no vllm"}


def lacking(name: str, devices: int, **lacks: str) -> NodeCapacity:
    return replace(node(name, devices), lacks=lacks or NO_TORCH)


def test_work_goes_where_it_can_run() -> None:
    nodes = [lacking("a", 4), node("b", 8)]
    assert place(Demand(2, kind="train"), nodes) == [Placement("b", 2, (0, 1))]
    assert place(Demand(2, kind="prepare"), nodes) == [Placement("a", 2, (0, 1))]
    # A demand that says no kind, and a node that does not say what it can, are as before.
    assert place(Demand(2), nodes) == [Placement("a", 2, (0, 1))]
    with pytest.raises(Exhausted, match="its agent does not know this kind of work"):
        place(Demand(1, kind="distill"), nodes[:1])


@pytest.mark.parametrize(
    ("kind", "nodes", "sentence"),
    [
        (
            "train",
            [lacking("n2", 4), lacking("n1", 4)],
            (
                "waiting for a node that can run train jobs; nodes n1, n2: torch is not installed:"
                " install it"
            ),
        ),
        (
            "replica",
            [lacking("n1", 4)],
            "waiting for a node that can run replicas; node n1: no vllm",
        ),
        (
            "train",
            [
                lacking("n1", 4),
                node("n2", 2),
                lacking("n3", 1, train="b"),
                lacking("n4", 1, train="b"),
            ],
            (
                "waiting for 4 ranks: 2 can start now on 1 node; nodes n3, n4: b; node n1: torch is"
                " not installed: install it"
            ),
        ),
        (
            "train",
            [lacking(f"n{number}", 1) for number in range(9)],
            (
                "waiting for a node that can run train jobs; nodes n0, n1, n2, others: torch is not"
                " installed: install it"
            ),
        ),
        ("train", [], "waiting for 4 ranks: 0 can start now on 0 nodes"),
        ("train", [node("n1", 1)], "waiting for 4 ranks: 1 can start now on 1 node"),
    ],
)
def test_what_waits_says_which_nodes_lack_what(
    kind: str, nodes: list[NodeCapacity], sentence: str
) -> None:
    with pytest.raises(Exhausted) as raised:
        place(Demand(4, kind=kind), nodes)
    assert str(raised.value) == sentence


def test_feasible_looks_at_idle_nodes() -> None:
    check_feasible(Demand(4), [node("a", 4, used=(0, 1, 2, 3), gib_used=64)])


def test_never_feasible() -> None:
    with pytest.raises(FailedPrecondition) as raised:
        check_feasible(Demand(1, memory_per_rank=80 * GIB), [node("a", 4)])
    assert str(raised.value) == (
        "the job needs 1 rank with 80.0 GiB each, but all nodes together can hold 0 of them when "
        "idle (the largest node has 64.0 GiB): ask for fewer ranks or less memory, or add a node"
    )
    with pytest.raises(FailedPrecondition):
        check_feasible(Demand(1), [])


@pytest.mark.parametrize(
    "make", [lambda: Demand(0), lambda: Demand(1, 0), lambda: Demand(1, None, -1)]
)
def test_demands_that_mean_nothing(make: object) -> None:
    with pytest.raises(InvalidInput):
        make()  # type: ignore[operator]  # a lambda, kept as object for the parameter's sake


@st.composite
def clusters(draw: st.DrawFn) -> list[NodeCapacity]:
    nodes = []
    for index in range(draw(st.integers(1, 5))):
        devices = draw(st.integers(0, 8))
        used = draw(st.sets(st.integers(0, max(devices - 1, 0))))
        nodes.append(
            node(
                f"n{index}", devices, tuple(used), draw(st.integers(0, 64)), draw(st.integers(0, 8))
            )
        )
    return nodes


@given(clusters(), st.integers(1, 20), st.none() | st.integers(1, 4), st.integers(0, 8))
def test_whole_or_not_at_all(
    nodes: list[NodeCapacity], ranks: int, most: int | None, gib: int
) -> None:
    demand = Demand(ranks, most, gib * GIB)
    by_name = {item.node: item for item in nodes}

    def room(item: NodeCapacity) -> int:
        memory = (item.memory_total - item.memory_used) // (gib * GIB) if gib else 99
        return max(0, min(len(item.free), memory, most or 99))

    rooms = sorted(map(room, nodes), reverse=True)
    try:
        placements = place(demand, nodes)
    except Exhausted:
        assert sum(rooms) < ranks
        return
    assert sum(p.ranks for p in placements) == ranks
    assert len({p.node for p in placements}) == len(placements)
    for placement in placements:
        assert (
            placement.ranks == len(set(placement.device_indices)) <= room(by_name[placement.node])
        )
        assert set(placement.device_indices) <= set(by_name[placement.node].free)
    fewest = next(n for n in range(1, len(rooms) + 1) if sum(rooms[:n]) >= ranks)
    assert len(placements) == fewest
    check_feasible(demand, nodes)
    assert place(demand, list(reversed(nodes))) == placements
