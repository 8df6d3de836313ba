"""A port that stays free: below the range the kernel hands to clients (32768 up), where a port that
was free a moment ago may be somebody's outgoing connection now.
"""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """A loopback port that nobody listens on."""
    for _ in range(100):
        port = random.randrange(24_000, 29_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("no ports are free")
