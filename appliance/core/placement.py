"""Where the ranks of a job run: all of them at once or none (gang placement). Pure.

Rules kept here:
* one rank takes one device and its memory; a device has one rank at most;
* no rank goes to a node that lacks what its kind of work needs, or that takes nothing new;
* the answer is whole: either every rank has a place or the call raises and nothing is taken;
* as few nodes as possible (traffic inside a node is cheaper than between nodes), and among equals
  the node where the least is left over, so that large holes stay whole for large jobs;
* the same input gives the same answer.

Called by the scheduler when it starts jobs and by the job service when it accepts them
(`check_feasible`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from appliance.core.errors import Exhausted, FailedPrecondition, InvalidInput
from appliance.core.needs import REPLICA
from appliance.core.numbers import readable

_GIB = 1 << 30
_MAX_NAMED = 3


@dataclass(frozen=True)
class NodeCapacity:
    """What a node has: devices (numbered from 0) and which are taken.

    Memory for ranks and how much is taken, bytes. `lacks` says of each kind of work what the node
    lacks for it, "" for nothing; None when it does not say: then it can run everything. `closed`:
    why nothing new is placed there; empty when it is.
    """

    node: str
    devices_total: int
    memory_total: int
    devices_used: frozenset[int] = field(default_factory=frozenset)
    memory_used: int = 0
    lacks: Mapping[str, str] | None = field(default=None, hash=False)
    closed: str = ""

    def refusal(self, demand: Demand) -> str:
        """Why the node cannot run this work, or takes none; empty when it can."""
        if self.closed:
            return self.closed
        if self.lacks is None:
            return "its agent is too old for this job: update it" if demand.new_agent else ""
        if not demand.kind:
            return ""
        return self.lacks.get(demand.kind, "its agent does not know this kind of work: update it")

    @property
    def free(self) -> list[int]:
        """Free devices, lowest first."""
        return [index for index in range(self.devices_total) if index not in self.devices_used]


@dataclass(frozen=True)
class Demand:
    """What a job needs.

    Ranks, at most so many on one node (None: no limit), bytes of memory for each, and the kind of
    work, for which nodes may lack something ("": any node will do). `new_agent`: an agent that does
    not say what its node lacks, as that of 0.1.0, would not understand the job.
    """

    ranks: int
    ranks_per_node_max: int | None = None
    memory_per_rank: int = 0
    kind: str = ""
    new_agent: bool = False

    def __post_init__(self) -> None:
        """Refuse a demand that means nothing."""
        if self.ranks < 1:
            raise InvalidInput("a job needs at least one rank")
        if self.ranks_per_node_max is not None and self.ranks_per_node_max < 1:
            raise InvalidInput("ranks per node must be at least one")
        if self.memory_per_rank < 0:
            raise InvalidInput("memory per rank cannot be negative")


@dataclass(frozen=True)
class Placement:
    """So many ranks on this node, on these devices."""

    node: str
    ranks: int
    device_indices: tuple[int, ...]


def room(demand: Demand, node: NodeCapacity) -> int:
    """How many ranks of a demand fit on a node now."""
    if node.refusal(demand):
        return 0
    room = len(node.free)
    if demand.memory_per_rank:
        room = min(room, (node.memory_total - node.memory_used) // demand.memory_per_rank)
    if demand.ranks_per_node_max is not None:
        room = min(room, demand.ranks_per_node_max)
    return max(room, 0)


def _choose(demand: Demand, nodes: Sequence[NodeCapacity]) -> list[Placement] | None:
    """The fewest nodes that hold all ranks, or None."""
    rooms = {node.node: room(demand, node) for node in nodes}
    left = demand.ranks
    remaining = sorted(nodes, key=lambda node: node.node)
    placements: list[Placement] = []
    while left:
        enough = [node for node in remaining if rooms[node.node] >= left]
        # The tightest node that takes all that is left; otherwise the one that takes most.
        if enough:
            node = min(enough, key=lambda node: (rooms[node.node], len(node.free), node.node))
        else:
            usable = [node for node in remaining if rooms[node.node] > 0]
            if not usable:
                return None
            node = min(usable, key=lambda node: (-rooms[node.node], node.node))
        ranks = min(left, rooms[node.node])
        placements.append(Placement(node.node, ranks, tuple(node.free[:ranks])))
        remaining.remove(node)
        left -= ranks
    return placements


def _needs(demand: Demand) -> str:
    text = f"{demand.ranks} rank{'s' if demand.ranks > 1 else ''}"
    if demand.memory_per_rank:
        text += f" with {demand.memory_per_rank / _GIB:.1f} GiB each"
    if demand.ranks_per_node_max is not None:
        text += f", at most {demand.ranks_per_node_max} on a node"
    return text


def why_none(demand: Demand, node: NodeCapacity) -> str:
    """Why a node could not run one rank now, for a person; empty when it could."""
    if room(demand, node):
        return ""
    if refusal := node.refusal(demand):
        return refusal
    if not node.free:
        return f"all of its {node.devices_total} devices are taken"
    free = node.memory_total - node.memory_used
    return (
        f"a rank needs {readable(demand.memory_per_rank)}, and of its {readable(node.memory_total)}"
        f" {readable(max(free, 0))} are free"
    )


def place(demand: Demand, nodes: Sequence[NodeCapacity]) -> list[Placement]:
    """Places for all ranks of a demand.

    Raises:
        Exhausted: not now; the sentence says what is needed and what is free. The job waits in the
            queue.
    """
    placements = _choose(demand, nodes)
    if placements is None:
        free = sum(room(demand, node) for node in nodes)
        able = sum(not node.refusal(demand) for node in nodes)
        raise Exhausted(
            waiting(
                demand,
                nodes,
                f"{_needs(demand)}: {free} can start now on {able} node{'' if able == 1 else 's'}",
            ),
            needed=demand.ranks,
            free=free,
        )
    return placements


def waiting(demand: Demand, nodes: Sequence[NodeCapacity], needs: str) -> str:
    """What work waits for, for a person.

    Args:
        demand: of the work.
        nodes: that could get it.
        needs: what it waits for on those of them that can run it.
    """
    by_reason: dict[str, list[str]] = {}
    for node in nodes:
        if reason := node.refusal(demand):
            by_reason.setdefault(reason, []).append(node.node)
    refusals = [f"{_named(names)}: {reason}" for reason, names in sorted(by_reason.items())]
    if by_reason and all(node.refusal(demand) for node in nodes):
        work = "replicas" if demand.kind == REPLICA else f"{demand.kind} jobs"
        needs = f"a node that can run {work}"
    return "; ".join([f"waiting for {needs}", *refusals])


def _named(nodes: Sequence[str]) -> str:
    shown = [*sorted(nodes)[:_MAX_NAMED], *(["others"] if len(nodes) > _MAX_NAMED else [])]
    return f"node{'s' if len(nodes) > 1 else ''} {', '.join(shown)}"


def could_hold(demand: Demand, nodes: Sequence[NodeCapacity]) -> bool:
    """Whether these nodes could run all ranks if nothing else ran."""
    empty = [replace(node, devices_used=frozenset(), memory_used=0) for node in nodes]
    return _choose(demand, empty) is not None


def check_feasible(demand: Demand, nodes: Sequence[NodeCapacity]) -> None:
    """Raise FailedPrecondition when the demand would not fit even if nothing else ran.

    What nodes lack for it is no reason, nor that one is cordoned: both can end while it waits.
    """
    demand = replace(demand, kind="", new_agent=False)
    empty = [replace(node, devices_used=frozenset(), memory_used=0, closed="") for node in nodes]
    if not empty:
        raise FailedPrecondition("there is no node: join one with `appliance node`, then repeat")
    if _choose(demand, empty) is not None:
        return
    most = sum(room(demand, node) for node in empty)
    largest = max(node.memory_total for node in empty)
    raise FailedPrecondition(
        f"the job needs {_needs(demand)}, but all nodes together can hold {most} of them when idle "
        f"(the largest node has {largest / _GIB:.1f} GiB): ask for fewer ranks or less memory, "
        "or add a node",
        needed=demand.ranks,
        possible=most,
    )
