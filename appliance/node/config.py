"""What the agent of a node can be told; the table in docs/nodes.md is made from this."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from appliance.core.config import doc
from appliance.machine.control_plane import ControlAddress


@dataclass(frozen=True)
class Devices:
    """What the node offers."""

    kind: Literal["auto", "cpu", "cuda"] = field(
        default="auto", metadata=doc("`auto`: GPUs if there are any, else process slots on CPUs")
    )
    count: Annotated[int, Meta(ge=0)] = field(
        default=0, metadata=doc("devices to offer; 0: all GPUs, or one slot for each core")
    )
    memory_bytes: Annotated[int, Meta(ge=0)] = field(
        default=0, metadata=doc("memory to offer to work; 0: four fifths of what there is")
    )
    threads: Annotated[int, Meta(ge=0)] = field(
        default=0, metadata=doc("CPU threads of each rank; 0: cores divided by devices")
    )


@dataclass(frozen=True)
class NodeConfig:
    """The agent of one node."""

    objects: str = field(metadata=doc("object store that all nodes share, an fsspec URL"))
    control: ControlAddress
    join_token: Path = field(
        metadata=doc("file with the one-use join token; removed when the node has joined")
    )
    state: Path = field(
        metadata=doc("private folder for the node's identity and the logs of its work")
    )
    devices: Devices = field(default_factory=Devices)
    scratch: Path | None = field(
        default=None,
        metadata=doc("private folder for temporary files of work, best in memory; unset: in state"),
    )
    address: str = field(
        default="127.0.0.1",
        metadata=doc("address that other nodes and gateways reach this node at"),
    )
    cgroup: Path | None = field(
        default=None,
        metadata=doc(
            "delegated cgroup v2 folder, below which each work gets its own, with its memory limit"
        ),
    )
    health: str = field(
        default="127.0.0.1:7446", metadata=doc("loopback address of the gRPC health service")
    )
    metrics: str = field(default="127.0.0.1:7447", metadata=doc("loopback address of the metrics"))
    log_bytes: Annotated[int, Meta(ge=1)] = field(
        default=16 << 20, metadata=doc("bytes of log kept of each work; older ones are dropped")
    )
