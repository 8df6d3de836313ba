"""The view of the gateways as entries by key, and the messages that carry it. Pure.

Rules kept here:
* a view says who may do what in which project, and which endpoint is in which project: never who
  may ask which endpoint, which would be people times endpoints;
* a change says what is new, different or gone since a version, and the digest of everything then;
* a message is far smaller than what gRPC lets pass, and so small that a gateway takes it in between
  two tokens of its answers; a large view comes in many.

Made by `services.serving.routing`; taken in by the gateway's snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from appliance.api.serving.v1 import routing_service_pb2 as rpc
from appliance.wire import routing
from appliance.wire.routing import ViewEntry

MESSAGE_BYTES = 64 << 10
"""A gateway takes such a message of credentials in within some 10 ms; one of 1 MiB stopped it for
100 to 300."""

Key = tuple[str, ...]
"""Kind and names: `("credential", id)`, `("right", principal, project)`, `("route", endpoint)`."""


@dataclass(frozen=True)
class HeldView:
    """What gateways hold at one version.

    Attributes:
        entries: by key.
        total: sum of the entries' digests.
    """

    version: int
    token_key: bytes = field(repr=False)
    entries: Mapping[Key, ViewEntry] = field(repr=False)
    total: int = field(default=0, repr=False)

    def followed_by(self, version: int, entries: Mapping[Key, ViewEntry]) -> HeldView:
        """The view after this one; this one itself when it would say the same."""
        added = [e for key, e in entries.items() if self.differs(key, e)]
        removed = [
            old
            for key, old in self.entries.items()
            if (new := entries.get(key)) is None or (new is not old and new != old)
        ]
        if not added and not removed:
            return self
        digests = (map(routing.entry_digest, each) for each in (added, removed))
        return HeldView(
            max(version, self.version + 1),
            self.token_key,
            entries,
            routing.total(self.total, *digests),
        )

    def since(self, before: HeldView | None) -> list[rpc.RoutingView]:
        """The messages that make this view of the one before, or of nothing."""
        if before is None:
            found = _messages(self.entries.items(), ())
            found[0].token_key = self.token_key
        else:
            changed = [item for item in self.entries.items() if before.differs(*item)]
            gone = [key for key in before.entries if key not in self.entries]
            found = _messages(changed, gone)
        for message in found:
            message.version = self.version
            message.base_version = before.version if before else 0
            message.more = True
        found[-1].more = False
        found[-1].digest = routing.digest(self.total)
        return found

    def differs(self, key: Key, entry: ViewEntry) -> bool:
        """Whether an entry is new here, or another one."""
        old = self.entries.get(key)
        return old is not entry and old != entry


def key_of(entry: ViewEntry) -> Key:
    """What an entry is known by."""
    if isinstance(entry, rpc.Credential):
        return ("credential", entry.id)
    if isinstance(entry, rpc.Right):
        return ("right", entry.principal, entry.project)
    return ("route", entry.endpoint)


def _messages(
    changed: Iterable[tuple[Key, ViewEntry]], gone: Iterable[Key]
) -> list[rpc.RoutingView]:
    """What changed and what is gone, in messages of bounded size; at least one."""
    found = [rpc.RoutingView()]
    size = 0
    items: list[tuple[Key, ViewEntry | None]] = [*changed, *((key, None) for key in gone)]
    for key, entry in items:
        cost = entry.ByteSize() if entry else sum(map(len, key))
        if size and size + cost > MESSAGE_BYTES:
            found.append(rpc.RoutingView())
            size = 0
        size += cost
        if entry is None:
            _drop(found[-1], key)
        else:
            _put(found[-1], entry)
    return found


def _put(message: rpc.RoutingView, entry: ViewEntry) -> None:
    if isinstance(entry, rpc.Credential):
        message.credentials.append(entry)
    elif isinstance(entry, rpc.Right):
        message.rights.append(entry)
    else:
        message.routes.append(entry)


def _drop(message: rpc.RoutingView, key: Key) -> None:
    kind, *names = key
    if kind == "credential":
        message.gone_credentials.append(names[0])
    elif kind == "right":
        message.gone_rights.add(principal=names[0], project=names[1])
    else:
        message.gone_routes.append(names[0])
