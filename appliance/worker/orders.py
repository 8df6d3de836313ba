"""What the node agent wants served: the one JSON document on the orders pipe.

Rules kept here:
* everything secret (the data key, the private key) comes through the pipe and is never shown by
  `repr`, so no log line or traceback can hold it;
* an order that cannot be carried out is refused with the member's name before anything starts.

Called by `appliance.worker.main`; pure but for `read`.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.core.errors import InvalidInput
from appliance.crypto.store import Artifact

MAX_ORDERS = 1 << 20
KEY_SIZE = 32


@dataclass(frozen=True)
class ReplicaOrders:
    """One replica to serve.

    Attributes:
        work: uid of the replica's work, `epoch` the lease it is held under.
        endpoint: resource name of the endpoint.
        model: what to serve.
        objects: fsspec URL of the object store.
        devices: indices of cores (CPU) or GPUs; a multiple of `tensor_parallel`.
        tensor_parallel: ranks of the engine.
        max_sequence_length: most tokens of prompt and answer; 0: what the model can.
        cache_bytes: memory of the key-value cache of the whole replica.
        listen: `host:port` to listen on; port 0 takes a free one.
        key_pem, cert_pem, ca_pem: identity of this replica and the authority of the appliance.
        cluster_id: the cluster whose gateways may call.
        gateways: file that says which of their certificates count.
    """

    work: str
    epoch: int
    endpoint: str
    model: Artifact
    objects: str
    devices: tuple[int, ...]
    tensor_parallel: int
    max_sequence_length: int
    cache_bytes: int
    listen: str
    key_pem: bytes = field(repr=False)
    cert_pem: bytes = field(repr=False)
    ca_pem: bytes = field(repr=False)
    cluster_id: str
    gateways: Path


def read(descriptor: int) -> bytes:
    """Everything the agent wrote to the pipe before closing it; closes it here too.

    Raises InvalidInput when it is empty or too large.
    """
    with os.fdopen(descriptor, "rb") as pipe:
        document = pipe.read(MAX_ORDERS + 1)
    if not document or len(document) > MAX_ORDERS:
        raise InvalidInput(f"the orders must have 1 to {MAX_ORDERS} bytes, not {len(document)}")
    return document


def parse(document: bytes) -> ReplicaOrders:
    """The orders in a document. Raises InvalidInput naming the member that is missing or wrong."""
    try:
        value = json.loads(document)
    except ValueError as error:
        # The decoder's message may quote the document, and the document holds keys.
        raise InvalidInput("the orders are not a JSON document") from error.with_traceback(None)
    members = _Members(value, "")
    orders = ReplicaOrders(
        work=members.text("work"),
        epoch=members.whole("epoch", least=0),
        endpoint=members.text("endpoint"),
        model=_model(_Members(members.raw("model"), "model.")),
        objects=members.text("objects"),
        devices=members.indices("devices"),
        tensor_parallel=members.whole("tensor_parallel", least=1),
        max_sequence_length=members.whole("max_sequence_length", least=0),
        cache_bytes=members.whole("cache_bytes", least=1),
        listen=members.text("listen"),
        key_pem=members.text("key_pem").encode(),
        cert_pem=members.text("cert_pem").encode(),
        ca_pem=members.text("ca_pem").encode(),
        cluster_id=members.text("cluster_id"),
        gateways=Path(members.text("gateways")),
    )
    if len(orders.devices) % orders.tensor_parallel:
        raise InvalidInput(
            f"{len(orders.devices)} devices cannot be shared by {orders.tensor_parallel} "
            "tensor-parallel ranks: give each rank as many as the others",
            fields={"devices": "not a multiple of tensor_parallel"},
        )
    return orders


def _model(members: _Members) -> Artifact:
    try:
        key = base64.b64decode(members.text("key"), validate=True)
    except binascii.Error as error:
        raise members.wrong("key", "is not base64") from error
    if len(key) != KEY_SIZE:
        raise members.wrong("key", f"must have {KEY_SIZE} bytes")
    folder = members.text("folder")
    if ".." in folder.split("/") or folder.startswith("/"):
        raise members.wrong("folder", "must lie below the object store")
    if members.text("kind") != "model":
        raise members.wrong("kind", "must be model: nothing else can be served")
    return Artifact(
        folder=folder,
        object=members.text("object"),
        project=members.text("project"),
        key=key,
        digest=members.text("digest", empty=True),
    )


class _Members:
    """Typed access to the members of one JSON object."""

    def __init__(self, value: Any, path: str) -> None:  # noqa: ANN401  # whatever JSON holds
        if not isinstance(value, Mapping):
            raise InvalidInput(f"the orders have no object {path.rstrip('.') or 'at the top'}")
        self._value = value
        self._path = path

    def wrong(self, name: str, what: str) -> InvalidInput:
        """The error for one member; never shows its value."""
        path = f"{self._path}{name}"
        return InvalidInput(f"{path} of the orders {what}", fields={path: what})

    def raw(self, name: str) -> Any:  # noqa: ANN401  # whatever JSON holds
        """The member as it is."""
        if name not in self._value:
            raise self.wrong(name, "is missing")
        return self._value[name]

    def _of(self, name: str, right: Callable[[Any], bool], what: str) -> Any:  # noqa: ANN401  # checked by `right`
        value = self.raw(name)
        if not right(value):
            raise self.wrong(name, f"must be {what}")
        return value

    def text(self, name: str, *, empty: bool = False) -> str:
        """A text, not empty unless said."""
        return str(self._of(name, lambda v: isinstance(v, str) and (empty or bool(v)), "a text"))

    def whole(self, name: str, *, least: int) -> int:
        """A whole number of at least `least`."""
        return int(self._of(name, lambda v: type(v) is int and v >= least, f"at least {least}"))

    def indices(self, name: str) -> tuple[int, ...]:
        """A list of indices, not empty."""

        def right(value: Any) -> bool:  # noqa: ANN401  # whatever JSON holds
            return (
                isinstance(value, list)
                and bool(value)
                and all(type(v) is int and v >= 0 for v in value)
            )

        return tuple(self._of(name, right, "a list of indices, with at least one"))
