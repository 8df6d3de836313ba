"""The digest of a routing view, which both ends of the stream compute from what they hold.

Rules kept here:
* it is over everything that is held, in no order: the sum of SHA-256 of each entry modulo 2^256
  (AdHash; Bellare and Micciancio, 1997). So one entry that changes costs the same in a small view
  and in a large one;
* an entry is a message of the view in its deterministic form, with what kind it is before it.

It finds mistakes (a change that was lost or applied twice), not attackers: the stream comes from
the control plane over mutual TLS. Called by the routing service and by the gateway.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from appliance.api.serving.v1 import routing_service_pb2

ViewEntry = routing_service_pb2.Credential | routing_service_pb2.Right | routing_service_pb2.Route
FORM = 1
"""What a gateway says that it reads: rights by project, and changes."""
_MODULUS = 1 << 256


def entry_digest(entry: ViewEntry) -> int:
    """The number of one entry."""
    kind = entry.DESCRIPTOR.name.encode()
    text = kind + b"\0" + entry.SerializeToString(deterministic=True)
    return int.from_bytes(hashlib.sha256(text).digest(), "big")


def total(before: int, added: Iterable[int], removed: Iterable[int]) -> int:
    """The sum after some entries came and others went."""
    return (before + sum(added) - sum(removed)) % _MODULUS


def digest(number: int) -> bytes:
    """A sum as it is sent, 32 bytes."""
    return number.to_bytes(32, "big")
