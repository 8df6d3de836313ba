"""The connections of a client: made at the first call, shared, and of one process alone.

Rules kept here: a channel believes the appliance's own authority alone, and names the kind of
server that it expects; after a fork nothing of the parent is used, since gRPC's threads stay there
and a call would wait for ever.

Called by `calls` and `async_calls`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from appliance.client.methods import Method
from appliance.core.errors import FailedPrecondition
from appliance.core.identity import PrincipalKind

Channel = TypeVar("Channel")


class Channels(Generic[Channel]):
    """Channels to the servers of one appliance.

    Args:
        connect: makes one, see `wire.tls`.
        ca_pem: the appliance's CA certificate.
    """

    def __init__(self, connect: Callable[..., Channel], ca_pem: bytes) -> None:
        self._connect = connect
        self._ca_pem = ca_pem
        self._lock = threading.Lock()
        self._process = 0
        self._open: dict[str, Channel] = {}
        self._calls: dict[tuple[str, str], Any] = {}
        self._closed = False

    def call(self, address: str, kind: PrincipalKind, method: Method) -> Any:
        """What calls a method of the server of a kind at an address.

        Raises FailedPrecondition after a fork, or when it was closed.
        """
        if not address:
            raise FailedPrecondition(
                "only the gateway of this appliance is known here: give `server` too, HOST:PORT of "
                "the control plane"
            )
        # Before the lock, which a thread of the parent may have held.
        if self._process not in {0, os.getpid()}:
            raise FailedPrecondition(
                "this client has called before the process was forked: make a client in the new "
                "process, or call nothing before the fork"
            )
        with self._lock:
            if self._closed:
                raise FailedPrecondition("this client was closed: make another one")
            found = self._calls.get((address, method.name))
            if found is None:
                stub = method.stub(self._channel(address, kind))
                found = self._calls[address, method.name] = getattr(stub, method.short)
            return found

    def _channel(self, address: str, kind: PrincipalKind) -> Channel:
        if address not in self._open:
            self._process = os.getpid()
            self._open[address] = self._connect(address, self._ca_pem, server_name=kind.server_name)
        return self._open[address]

    def take(self) -> list[Channel]:
        """Every channel, for whoever closes them; nothing is called any more."""
        self._closed = True
        if self._process not in {0, os.getpid()}:
            return []
        with self._lock:
            self._calls.clear()
            channels = list(self._open.values())
            self._open.clear()
            return channels
