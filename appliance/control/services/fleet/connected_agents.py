"""The agents that are connected now, and the orders on their way to them.

Rules kept here:
* one session per node: an agent that connects again replaces its older session, which ends;
* an order is given to a connected agent or refused at once; nothing is kept for one that is away:
  what it must know it is told when it comes back;
* a node that has been silent for six seconds gets no new work, although its connection may look
  alive; after fifteen its session is ended;
* orders wait in a bounded queue; an agent that does not take them is cut off.

Called by `rpc.agents` (sessions) and by the life of jobs and replicas (orders), from several
threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.core.heartbeat import SILENT_SECONDS

MAX_WAITING = 1000
MAX_PORTS = 64
DEAD_SECONDS = 15.0


@dataclass(frozen=True)
class NodeFacts:
    """What a node said of itself when it connected; memory in bytes.

    `lacks` says of each kind of work what the node lacks for it, "" for nothing; None when it does
    not say. `sends_logs`: it knows the order to send the lines of a work.
    """

    node: str
    devices: int
    device_kind: str
    memory_bytes: int
    address: str
    agent_version: str
    lacks: Mapping[str, str] | None = None
    sends_logs: bool = False


class AgentSession:
    """One connected agent. Made inside the event loop that reads its orders."""

    def __init__(self, facts: NodeFacts) -> None:
        self.facts = facts
        self._loop = asyncio.get_running_loop()
        self._orders: asyncio.Queue[rpc.ConnectResponse | None] = asyncio.Queue()
        self._lock = threading.Lock()
        self._waiting = 0
        self._open = True

    def send(self, order: rpc.ConnectResponse) -> bool:
        """Queue an order, from any thread; False when the session is over."""
        with self._lock:
            if not self._open:
                return False
            self._waiting += 1
            full = self._waiting > MAX_WAITING
        if full:
            self.close()
            return False
        return self._put(order)

    def close(self) -> None:
        """End the session once the orders before have been read, from any thread."""
        with self._lock:
            if not self._open:
                return
            self._open = False
        self._put(None)

    async def next(self) -> rpc.ConnectResponse | None:
        """The next order; None when the session is over."""
        order = await self._orders.get()
        with self._lock:
            self._waiting -= 1
        return order

    def _put(self, order: rpc.ConnectResponse | None) -> bool:
        # A loop that is closed has no agents left; the server is stopping.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._orders.put_nowait, order)
            return True
        return False


class ConnectedAgents:
    """The connected agents by node.

    Args:
        served: seconds during which this control plane has served (`services.fleet.served_clock`).
    """

    def __init__(self, served: Callable[[], float]) -> None:
        self._served = served
        self._lock = threading.Lock()
        self._sessions: dict[str, AgentSession] = {}
        self._heard: dict[str, float] = {}
        self._ports: dict[str, tuple[int, ...]] = {}

    def enter(self, session: AgentSession, ports: Iterable[int] = ()) -> None:
        """Take in a session, with the free ports of its node; an older one of that ends."""
        node = session.facts.node
        with self._lock:
            older = self._sessions.get(node)
            self._sessions[node] = session
            self._heard[node] = self._served()
        self.offer(node, ports)
        if older is not None:
            older.close()

    def leave(self, session: AgentSession) -> bool:
        """Forget a session that has ended; whether it was still the node's."""
        with self._lock:
            current = self._sessions.get(session.facts.node) is session
            if current:
                del self._sessions[session.facts.node]
        session.close()
        return current

    def note_heard(self, node: str) -> None:
        """A node has said something."""
        with self._lock:
            self._heard[node] = self._served()

    def silent_for(self, node: str) -> float:
        """Seconds served since a node that was connected has said something."""
        with self._lock:
            return self._served() - self._heard[node]

    def offer(self, node: str, ports: Iterable[int]) -> None:
        """A node says on which of its ports nobody listens."""
        valid = tuple(port for port in ports if 0 < port < 1 << 16)[:MAX_PORTS]
        with self._lock:
            self._ports[node] = valid

    def ports(self, node: str) -> tuple[int, ...]:
        """Free ports of a node as it said last; empty when it says none."""
        with self._lock:
            return self._ports.get(node, ())

    def end_silent(self) -> None:
        """End the sessions that are dead."""
        with self._lock:
            now = self._served()
            silent = [
                session
                for node, session in self._sessions.items()
                if now - self._heard[node] >= DEAD_SECONDS
            ]
        for session in silent:
            session.close()

    def drop(self, node: str) -> None:
        """Cut a node off."""
        with self._lock:
            session = self._sessions.pop(node, None)
        if session is not None:
            session.close()

    def send(self, node: str, order: rpc.ConnectResponse) -> bool:
        """Give an order to a node; False when its agent is not connected."""
        with self._lock:
            session = self._sessions.get(node)
        return session is not None and session.send(order)

    def nodes(self) -> list[NodeFacts]:
        """The nodes that may get work, by id."""
        with self._lock:
            now = self._served()
            return [
                session.facts
                for node, session in sorted(self._sessions.items())
                if now - self._heard[node] < SILENT_SECONDS
            ]

    def connected(self) -> list[str]:
        """The nodes whose streams are open, sorted."""
        with self._lock:
            return sorted(self._sessions)

    def facts(self, node: str) -> NodeFacts | None:
        """What a connected node is; None when its agent is away."""
        with self._lock:
            session = self._sessions.get(node)
        return None if session is None else session.facts
