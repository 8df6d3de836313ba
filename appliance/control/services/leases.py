"""Who may act for which work now: leases, epochs, and the devices that are taken.

Work is a job (`{uid}`) or a replica (`{endpoint uid}/{replica id}`); each start of it has an epoch
one higher than the last, and one share per node. Rules kept here:
* a lease holds for a time on this process's monotonic clock and is renewed only by heartbeats that
  name the work and its epoch; what is said under another epoch, or after the time, is refused;
* a share that is told to stop keeps its devices until its node no longer reports it, or until its
  lease would have ended, by when the node has stopped it by itself;
* the state database knows epochs and shares; times live here alone, so a clock that is set does
  not end or stretch a lease.

The attack: a node behind a broken network that goes on writing for a job which another node has
taken over. Called by the life of jobs and replicas, by `services.agents` and by the scheduler, from
several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from appliance.core import jobs
from appliance.core.errors import LeaseLost
from appliance.core.placement import NodeCapacity

LEASE_SECONDS = 15.0


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


@dataclass
class _Held:
    epoch: int
    shares: dict[str, Share]
    leases: dict[str, jobs.Lease]


@dataclass(frozen=True)
class _Leaving:
    work: str
    epoch: int
    share: Share
    until: float


class Leases:
    """The leases of this control plane.

    Args:
        monotonic: seconds that only rise.
        seconds: how long a lease holds.
    """

    def __init__(self, monotonic: Callable[[], float], *, seconds: float = LEASE_SECONDS) -> None:
        self.seconds = seconds
        self._monotonic = monotonic
        self._lock = threading.RLock()
        self._held: dict[str, _Held] = {}
        self._leaving: list[_Leaving] = []

    def grant(self, work: str, last_epoch: int, shares: Sequence[Share]) -> int:
        """Lease a new start of `work` to the nodes of its shares; the new epoch."""
        return self.take_up(work, last_epoch + 1, shares)

    def take_up(self, work: str, epoch: int, shares: Sequence[Share]) -> int:
        """Lease a start that exists already: its nodes have a whole lease to be heard of again."""
        with self._lock:
            now = self._monotonic()
            leases = {
                share.node: jobs.grant(work, epoch - 1, share.node, now, self.seconds)
                for share in shares
            }
            self._held[work] = _Held(epoch, {share.node: share for share in shares}, leases)
            return epoch

    def check(self, work: str, epoch: int, node: str) -> Share:
        """The node's share. Raises LeaseLost unless the node holds this lease now."""
        with self._lock:
            held = self._held.get(work)
            lease = held.leases.get(node) if held is not None else None
            if held is None or lease is None:
                raise LeaseLost(f"this node holds no lease on {work}; stop its processes")
            jobs.check(lease, epoch, node, self._monotonic())
            return held.shares[node]

    def renew(self, node: str, running: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
        """Renew what a node reports to run, forget what it no longer runs.

        Returns what it reports but does not hold, and must stop.
        """
        with self._lock:
            reported = set(running)
            lost: list[tuple[str, int]] = []
            for work, epoch in sorted(reported):
                try:
                    self.check(work, epoch, node)
                except LeaseLost:
                    lost.append((work, epoch))
                    continue
                leases = self._held[work].leases
                leases[node] = jobs.renew(
                    leases[node], epoch, node, self._monotonic(), self.seconds
                )
            self._leaving = [
                leaving
                for leaving in self._leaving
                if leaving.share.node != node or (leaving.work, leaving.epoch) in reported
            ]
            return lost

    def of_node(self, node: str) -> list[tuple[str, int]]:
        """(work, epoch) the node may do now, sorted."""
        with self._lock:
            now = self._monotonic()
            return sorted(
                (work, held.epoch)
                for work, held in self._held.items()
                if node in held.leases
                and held.leases[node].live(now)
                and not held.shares[node].ended
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
                _Leaving(work, epoch, share, held.leases[share.node].expires) for share in running
            ]
            return running

    def gone(self, work: str, epoch: int, node: str) -> None:
        """A node says that its part has ended: its devices are free."""
        with self._lock:
            self._leaving = [
                leaving
                for leaving in self._leaving
                if (leaving.work, leaving.epoch, leaving.share.node) != (work, epoch, node)
            ]

    def expire(self, node: str) -> None:
        """The node is refused from now on: all its leases end."""
        with self._lock:
            now = self._monotonic()
            for held in self._held.values():
                if node in held.leases:
                    held.leases[node] = replace(held.leases[node], expires=now)

    def expired(self) -> list[tuple[str, int, str]]:
        """(work, epoch, node) whose lease has run out while the part had not ended, sorted."""
        with self._lock:
            now = self._monotonic()
            return sorted(
                (work, held.epoch, node)
                for work, held in self._held.items()
                for node, lease in held.leases.items()
                if not held.shares[node].ended and not lease.live(now)
            )

    def holds(self, work: str) -> bool:
        """Whether somebody holds a lease on the work, live or not."""
        with self._lock:
            return work in self._held

    def capacity(self, node: str, devices: int, memory: int) -> NodeCapacity:
        """What a node with so many devices and so much memory has left."""
        with self._lock:
            now = self._monotonic()
            taken = [
                share
                for held in self._held.values()
                for share in held.shares.values()
                if share.node == node and not share.ended
            ]
            taken += [
                leaving.share
                for leaving in self._leaving
                if leaving.share.node == node and leaving.until > now
            ]
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
