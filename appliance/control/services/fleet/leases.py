"""Who works on what under which epoch, which devices that takes, and whose work is lost.

Work is a job (`{uid}`) or a replica (`{endpoint uid}/{replica id}`); each start of it has an epoch
one higher than the last, and one share per node. Rules kept here:
* who may act is decided by the epoch alone: what is said under another one, or by another node, is
  refused, however late a node is heard under its own
  (docs/decisions/0027-fencing-is-not-liveness.md);
* work is lost when its node has been silent for `node_lost_seconds`, or for as long as the work
  itself waits, when a node that is heard no longer names it, or when its node was evicted; silence
  counts only while this control plane served, and not as time in which a node was heard;
* while more than half of the nodes are silent at once nobody is taken for lost: it is the network,
  or this server; nodes that are drained do not count, for somebody switches them off;
* a share that is told to stop keeps its devices until its node no longer names it;
* the state database knows epochs and shares; times live here alone, so a clock that is set loses
  nobody.

The attack: a node behind a broken network that goes on writing for a job which another node has
taken over. Called by the life of jobs and replicas, by `services.agent.agents` and by the
scheduler, from several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from appliance.control.services.fleet.served_clock import MAX_STEP
from appliance.core.errors import LeaseLost
from appliance.core.placement import NodeCapacity

NODE_LOST_SECONDS = 300.0
UNNAMED_SECONDS = 15.0
"""How long a node may be heard without naming work that it was given."""
STRANGE_SECONDS = 60.0
"""A node that has connected gets no work for so long while it ends what nobody here knows."""
SAID_SECONDS = 15.0
"""From then on it is said that a node is silent."""
REMEMBERED_SECONDS = 86_400.0
"""A node that has been silent for longer does not count among the nodes that there are."""
TOGETHER_SECONDS = 5.0
"""Nodes that fall silent together were not heard last at the same moment."""


@dataclass(frozen=True)
class Share:
    """One node's part of a piece of work.

    Args:
        node: id of the node.
        rank_base: first rank on it.
        devices: indices, one per rank.
        memory_bytes: for all its ranks together.
        port: on the first node of several, where the ranks meet; otherwise zero.
        ended: its process has ended well.
    """

    node: str
    rank_base: int
    devices: tuple[int, ...]
    memory_bytes: int
    port: int = 0
    ended: bool = False

    def as_json(self) -> dict[str, Any]:
        """As it stands in the column `placement`."""
        return {**asdict(self), "devices": list(self.devices)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Share:
        """Read what `as_json` made."""
        return cls(**{**value, "devices": tuple(value["devices"])})


@dataclass(frozen=True)
class Lost:
    """A start of a piece of work that is over on a node, and why."""

    work: str
    epoch: int
    node: str
    why: str


@dataclass
class _Held:
    """A start: its shares by node, for how long each node does not name it, and who was evicted.

    Seconds in which the node was heard: one that was silent may be about to report an end.
    `lost_seconds`: how long its nodes may be silent.
    """

    epoch: int
    shares: dict[str, Share]
    unnamed: dict[str, float]
    lost_seconds: float
    evicted: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Draining:
    work: str
    epoch: int
    share: Share


class Leases:
    """The leases of this control plane.

    Args:
        served: seconds during which this control plane has served (`services.fleet.served_clock`).
        node_lost_seconds: how long a node may be silent.
    """

    def __init__(
        self, served: Callable[[], float], *, node_lost_seconds: float = NODE_LOST_SECONDS
    ) -> None:
        self.node_lost_seconds = node_lost_seconds
        self._served = served
        self._lock = threading.RLock()
        self._held: dict[str, _Held] = {}
        self._heard: dict[str, float] = {}
        self._leaving: list[_Draining] = []
        self._left_out: frozenset[str] = frozenset()
        self._strange: dict[str, tuple[float, set[tuple[str, int]]]] = {}
        """What nodes ran when they connected, and nobody here knows which devices that has."""

    def grant(
        self,
        work: str,
        last_epoch: int,
        shares: Sequence[Share],
        lost_seconds: float | None = None,
    ) -> int:
        """Lease a new start of `work` to the nodes of its shares; the new epoch.

        Args:
            work: what is leased.
            last_epoch: of its last start.
            shares: its parts.
            lost_seconds: how long its nodes may be silent; None: `node_lost_seconds`.
        """
        return self.restore(work, last_epoch + 1, shares, lost_seconds)

    def restore(
        self, work: str, epoch: int, shares: Sequence[Share], lost_seconds: float | None = None
    ) -> int:
        """Lease a start that exists already: its nodes have their whole time to be heard again."""
        with self._lock:
            now = self._served()
            if (before := self._held.get(work)) and before.epoch != epoch:
                # The row of its end is written, and whoever wrote it has not come here yet.
                self.release(work, before.epoch)
            for share in shares:
                self._heard.setdefault(share.node, now)
            self._held[work] = _Held(
                epoch,
                {share.node: share for share in shares},
                dict.fromkeys((share.node for share in shares), 0.0),
                self.node_lost_seconds if lost_seconds is None else lost_seconds,
            )
            return epoch

    def check(self, work: str, epoch: int, node: str) -> Share:
        """The node's share. Raises LeaseLost unless the node holds this lease."""
        with self._lock:
            held = self._held.get(work)
            if held is None or node not in held.shares or node in held.evicted:
                raise LeaseLost(f"this node holds no lease on {work}; stop its processes")
            if held.epoch != epoch:
                raise LeaseLost(
                    f"epoch {epoch} of {work} is over; stop its processes",
                    work=work,
                    epoch=held.epoch,
                )
            return held.shares[node]

    def renew(
        self, node: str, running: Iterable[tuple[str, int]], *, is_new: bool = False
    ) -> list[tuple[str, int]]:
        """Note what a node reports to run, and forget what it no longer runs.

        Returns what it reports but does not hold, and must stop.

        Args:
            node: which.
            running: (work, epoch) of each.
            is_new: it has just connected; what it must stop may be of a time before this process.
        """
        with self._lock:
            now = self._served()
            heard = min(now - self._heard.get(node, now), MAX_STEP)
            self._heard[node] = now
            reported = set(running)
            over: list[tuple[str, int]] = []
            for held in self._held.values():
                if node in held.shares:
                    held.unnamed[node] += heard
            for work, epoch in sorted(reported):
                try:
                    self.check(work, epoch, node)
                except LeaseLost:
                    over.append((work, epoch))
                    continue
                self._held[work].unnamed[node] = 0.0
            self._leaving = [
                leaving
                for leaving in self._leaving
                if leaving.share.node != node or (leaving.work, leaving.epoch) in reported
            ]
            known = {(leaving.work, leaving.epoch) for leaving in self._leaving}
            since, strange = self._strange.get(node, (now, set()))
            self._strange[node] = (
                (now, set(over) - known) if is_new else (since, strange & reported)
            )
            return over

    def of_node(self, node: str) -> list[tuple[str, int]]:
        """(work, epoch) the node may do now, sorted."""
        with self._lock:
            return sorted(
                (work, held.epoch)
                for work, held in self._held.items()
                if node in held.shares and node not in held.evicted and not held.shares[node].ended
            )

    def end_share(self, work: str, epoch: int, node: str) -> list[Share]:
        """A node's part has ended well; all shares as they are now. Raises LeaseLost."""
        with self._lock:
            share = self.check(work, epoch, node)
            shares = self._held[work].shares
            shares[node] = replace(share, ended=True)
            return sorted(shares.values(), key=lambda share: share.rank_base)

    def release(self, work: str, epoch: int) -> list[Share]:
        """End a lease, if it still is of this epoch.

        Returns the shares whose nodes must be told to stop; they keep their devices for now.
        """
        with self._lock:
            held = self._held.get(work)
            if held is None or held.epoch != epoch:
                return []
            del self._held[work]
            running = [share for share in held.shares.values() if not share.ended]
            self._leaving += [
                _Draining(work, epoch, share) for share in running if share.node not in held.evicted
            ]
            return running

    def confirm_stopped(self, work: str, epoch: int, node: str) -> None:
        """A node says that its part has ended: its devices are free."""
        with self._lock:
            self._leaving = [
                leaving
                for leaving in self._leaving
                if (leaving.work, leaving.epoch, leaving.share.node) != (work, epoch, node)
            ]

    def ending(self, node: str) -> list[tuple[str, int]]:
        """(work, epoch) that is over, and whose processes a node has not said to have ended."""
        with self._lock:
            found = {(each.work, each.epoch) for each in self._leaving if each.share.node == node}
            return sorted(found | self._strange.get(node, (0.0, set()))[1])

    def nodes(self) -> list[str]:
        """Nodes that were heard of or are to be, sorted."""
        with self._lock:
            return sorted(self._heard)

    def evict(self, node: str) -> None:
        """The node is refused from now on: it holds nothing, and counts for nothing."""
        with self._lock:
            self._heard.pop(node, None)
            self._strange.pop(node, None)
            for held in self._held.values():
                if node in held.shares:
                    held.evicted.add(node)
            self._leaving = [leaving for leaving in self._leaving if leaving.share.node != node]

    def lost(self) -> list[Lost]:
        """Starts that are over on a node although it did not say so, sorted."""
        with self._lock:
            found = []
            silent: dict[float, Mapping[str, float]] = {}
            for work, held in self._held.items():
                seconds = held.lost_seconds
                if seconds not in silent:
                    silent[seconds] = {} if self.is_cut_off(seconds) else self.silent(seconds)
                for node, share in held.shares.items():
                    why = "" if share.ended else self._why(held, node, silent[seconds])
                    if why:
                        found.append(Lost(work, held.epoch, node, why))
            return sorted(found, key=lambda lost: (lost.work, lost.node))

    def silent(self, seconds: float) -> dict[str, float]:
        """Nodes that have been silent for so long, and for how long each; seconds served."""
        with self._lock:
            now = self._served()
            return {
                node: now - heard
                for node, heard in sorted(self._heard.items())
                if now - heard >= seconds
            }

    def is_cut_off(self, lost_seconds: float | None = None) -> bool:
        """Whether more than half of the nodes have been silent for long enough to be lost.

        Then it is the network, or this server, and nobody is taken for lost.

        Args:
            lost_seconds: how long that is, `node_lost_seconds` at most, which it is if not given.
        """
        with self._lock:
            seconds = min(lost_seconds or self.node_lost_seconds, self.node_lost_seconds)
            silent = self.silent(max(seconds - TOGETHER_SECONDS, seconds / 2))
            return 2 * len(silent.keys() & self._counted()) > len(self._counted())

    def is_alone(self) -> bool:
        """Whether there is one node at most."""
        with self._lock:
            return len(self._counted()) <= 1

    def leave_out(self, nodes: Iterable[str]) -> None:
        """Nodes that are drained: whether they are silent says nothing about the network."""
        with self._lock:
            self._left_out = frozenset(nodes)

    def _counted(self) -> set[str]:
        """The nodes that there are, heard of or not."""
        return self._heard.keys() - self.silent(REMEMBERED_SECONDS).keys() - self._left_out

    def lost_seconds(self, work: str) -> float:
        """How long the nodes of leased work may be silent, in seconds."""
        with self._lock:
            held = self._held.get(work)
            return self.node_lost_seconds if held is None else held.lost_seconds

    def wait_for(self, work: str, lost_seconds: float | None) -> None:
        """From now on nodes of leased work may be silent for so long; None: as the site says."""
        with self._lock:
            if held := self._held.get(work):
                held.lost_seconds = self.node_lost_seconds if lost_seconds is None else lost_seconds

    def works_of(self, node: str) -> list[str]:
        """Work of which a part is on this node and has not ended, sorted."""
        return [work for work, _ in self.of_node(node)]

    def holds(self, work: str) -> bool:
        """Whether somebody holds a lease on the work, heard of or not."""
        with self._lock:
            return work in self._held

    def capacity(self, node: str, devices: int, memory: int) -> NodeCapacity:
        """What a node with so many devices and so much memory has left."""
        with self._lock:
            since, strange = self._strange.get(node, (0.0, set()))
            if strange and self._served() - since < STRANGE_SECONDS:
                return NodeCapacity(node, devices, memory, frozenset(range(devices)), memory)
            taken = [
                share
                for held in self._held.values()
                for share in held.shares.values()
                if share.node == node and not share.ended
            ]
            taken += [leaving.share for leaving in self._leaving if leaving.share.node == node]
        return NodeCapacity(
            node,
            devices,
            memory,
            frozenset(device for share in taken for device in share.devices),
            sum(share.memory_bytes for share in taken),
        )

    def ports(self, node: str) -> set[int]:
        """Ports on which ranks meet on this node."""
        with self._lock:
            return {
                share.port
                for held in self._held.values()
                for share in held.shares.values()
                if share.node == node and share.port
            }

    def _why(self, held: _Held, node: str, silent: Mapping[str, float]) -> str:
        """Why a node's part of a start is over; empty when it is not."""
        if node in held.evicted:
            return f"node {node} was evicted"
        if node in silent:
            return f"node {node} has not been heard of for {held.lost_seconds:.0f} s"
        if held.unnamed[node] >= UNNAMED_SECONDS:
            return f"node {node} no longer runs it"
        return ""
