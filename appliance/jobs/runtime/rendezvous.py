"""Where the nodes of one job meet, with ranks that the scheduler has given.

torch's own dynamic rendezvous numbers the nodes as they come, and exchanges its state through the
store as a pickle, which anybody who reaches the port could replace. This one needs neither: who is
there and how often they met are counters.

Rules kept here:
* the store listens on the one address that the orders name (loopback for a single node), never on
  all addresses of the machine;
* a round is complete when every node has joined it once; a node that starts again opens the next
  round, and the others see that and follow;
* every round has its own keys, so nothing of a broken round is read by the next;
* there are at most `rounds` of them.

The store has no authentication: the network between the nodes of a job must be private
(docs/nodes.md). Called by the leader, and by torch's elastic agent.
"""

from __future__ import annotations

import datetime as dt
import socket
import time

from torch.distributed import DistStoreError, PrefixStore, Store, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)

from appliance.core.addresses import place_of, split_address

JOIN_SECONDS = 180.0
"""How long a node waits for the others: they may be loading torch, or ending a broken round."""

POLL_SECONDS = 1.0
STORE_SECONDS = 300.0


class FixedRendezvous(RendezvousHandler):  # type: ignore[misc]  # torch's class has no types here
    """A rendezvous of `node_count` nodes, of which this one is number `node_rank`.

    Args:
        run_id: of this job and epoch; different ones never meet.
        endpoint: `host:port`; the node of rank 0 listens there (port 0: any).
        node_rank: of this node.
        node_count: nodes in all.
        rounds: how often the nodes may meet: one more than the restarts allowed.
        join_seconds: how long to wait for the others.
    """

    def __init__(  # noqa: PLR0913  # what the orders say, named at the one call
        self,
        run_id: str,
        endpoint: str,
        node_rank: int,
        node_count: int,
        *,
        rounds: int,
        join_seconds: float = JOIN_SECONDS,
    ) -> None:
        self.host, self.port = split_address(endpoint, "rendezvous")
        self.round = 0
        self._run_id = run_id
        self._node_rank = node_rank
        self._node_count = node_count
        self._rounds = rounds
        self._join_seconds = join_seconds
        self._tcp: TCPStore | None = None

    @property
    def use_agent_store(self) -> bool:
        """The ranks use the same store, under keys of their own."""
        return True

    def get_backend(self) -> str:
        """Name, for torch's log."""
        return "fixed"

    def get_run_id(self) -> str:
        """Of this job and epoch."""
        return self._run_id

    def next_rendezvous(self) -> RendezvousInfo:
        """Join the next round and wait until all nodes have.

        Raises:
            RendezvousClosedError: there were too many rounds.
            RendezvousConnectionError: the node of rank 0 cannot be reached.
            RendezvousTimeoutError: a node did not come.
        """
        if self.round >= self._rounds:
            raise RendezvousClosedError
        self.round += 1
        store = self._keys(self.round)
        if store.add("joined", 1) == self._node_count:
            store.set("complete", "1")
        self._wait(store)
        place = RendezvousStoreInfo(self.host, self.port)
        return RendezvousInfo(
            PrefixStore("agents", store), self._node_rank, self._node_count, place
        )

    def num_nodes_waiting(self) -> int:
        """Nodes that are in the next round already."""
        if self._node_count == 1:
            return 0
        return int(self._keys(self.round + 1).add("joined", 0))

    def publish(self, document: bytes) -> None:
        """Let the first node read what is known of the ranks of this one, in this round."""
        self._keys(self.round).set(f"signs/{self._node_rank}", document)

    def published(self) -> list[bytes]:
        """What the other nodes have published in this round."""
        store = self._keys(self.round)
        keys = [f"signs/{node}" for node in range(1, self._node_count)]
        return [store.get(key) for key in keys if store.check([key])]

    def is_closed(self) -> bool:
        """Rounds are limited by number alone."""
        return False

    def set_closed(self) -> None:
        """Nothing to do: the job ends with its leaders."""

    def shutdown(self) -> bool:
        """Let go of the store."""
        self._tcp = None
        return True

    def _keys(self, number: int) -> PrefixStore:
        return PrefixStore(f"{self._run_id}/{number}", self._connected())

    def _wait(self, store: Store) -> None:
        """Wait in short pieces, so that signals are seen between them."""
        end = time.monotonic() + self._join_seconds
        while True:
            try:
                store.wait(["complete"], dt.timedelta(seconds=POLL_SECONDS))
            except DistStoreError as error:
                if time.monotonic() > end:
                    raise RendezvousTimeoutError from error
            else:
                return

    def _connected(self) -> TCPStore:
        if self._tcp is None:
            self._tcp = self._listen() if self._node_rank == 0 else self._connect()
        return self._tcp

    def _listen(self) -> TCPStore:
        family, place = place_of(self.host, self.port)
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(place)
            listener.listen()
        except OSError as error:
            listener.close()
            raise RendezvousConnectionError(f"cannot listen on {self.host}") from error
        self.port = listener.getsockname()[1]
        # The store takes the descriptor over; without one it would listen on every address.
        return TCPStore(
            self.host,
            self.port,
            is_master=True,
            timeout=dt.timedelta(seconds=STORE_SECONDS),
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )

    def _connect(self) -> TCPStore:
        end = time.monotonic() + self._join_seconds
        while True:
            # A short try first: the store's own waiting would not see signals.
            try:
                socket.create_connection((self.host, self.port), timeout=POLL_SECONDS).close()
                break
            except OSError as error:
                if time.monotonic() > end:
                    raise RendezvousConnectionError(f"cannot reach {self.host}") from error
                time.sleep(POLL_SECONDS)
        return TCPStore(
            self.host,
            self.port,
            is_master=False,
            timeout=dt.timedelta(seconds=STORE_SECONDS),
        )


def rank_store(host: str, port: int, run_id: str, round_number: int) -> Store:
    """The store of the ranks in one round, as a rank sees it."""
    store = TCPStore(host, port, is_master=False, timeout=dt.timedelta(seconds=STORE_SECONDS))
    return PrefixStore(f"{run_id}/{round_number}/ranks", store)
