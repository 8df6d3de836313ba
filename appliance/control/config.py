"""Configuration of the control plane: `control.toml` in the data directory, written by `init`.

Keys come as paths of files in the data directory, never as values. `appliance.core.config` reads
it; docs/control.md shows the table that is made from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from appliance.control.audit.growing_file import MIN_RESERVE
from appliance.core.config import doc
from appliance.wire.admission import CallerLimits, StrangerLimits

MIN_SILENCE = 15
MAX_RETRY_SECONDS = 1800
MAX_DAYS = 36_500


@dataclass(frozen=True)
class ControlListen:
    """Addresses the control plane answers on."""

    api: str = field(
        default="127.0.0.1:7443",
        metadata=doc("people, applications and servers that join: TLS and bearer tokens"),
    )
    machines: str = field(
        default="127.0.0.1:7444",
        metadata=doc("nodes and gateways: TLS with a client certificate"),
    )
    metrics: str = field(
        default="127.0.0.1:7445",
        metadata=doc("Prometheus `/metrics`; on loopback only"),
    )


@dataclass(frozen=True)
class GatewayAddresses:
    """Where callers find the gateway, as `GetSystem` tells them."""

    grpc: str = field(default="127.0.0.1:8443", metadata=doc("its gRPC address, `host:port`"))
    openai: str = field(
        default="https://127.0.0.1:8444/v1",
        metadata=doc("its base URL for OpenAI clients"),
    )


@dataclass(frozen=True)
class RequestLimits:
    """How much callers may ask for."""

    anonymous_per_second: Annotated[float, Meta(ge=0)] = field(
        default=1.0,
        metadata=doc("calls without an identity from one address, and as many with a refused one"),
    )
    anonymous_burst: Annotated[int, Meta(ge=0)] = field(
        default=30, metadata=doc("such calls that may come at once")
    )


@dataclass(frozen=True)
class Scheduling:
    """When work is given up on a node."""

    node_lost_seconds: Annotated[float, Meta(ge=MIN_SILENCE)] = field(
        default=300.0,
        metadata=doc("silence of a node after which its work starts elsewhere; 15 or more"),
    )

    retry_seconds: Annotated[float, Meta(ge=0, le=MAX_RETRY_SECONDS)] = field(
        default=60.0,
        metadata=doc(
            "pause after a start of a job whose ranks failed; five times as long after the next one"
            " in a row, half an hour at most"
        ),
    )

    checkpoint_days: Annotated[float, Meta(ge=0, le=MAX_DAYS)] = field(
        default=14.0,
        metadata=doc("how long checkpoints are kept after their job has ended, however it ended"),
    )


@dataclass(frozen=True)
class Uploading:
    """What may be on its way in, part by part, and how long."""

    per_caller: Annotated[int, Meta(ge=1)] = field(
        default=16, metadata=doc("open uploads of one caller in one project at a time")
    )
    per_project: Annotated[int, Meta(ge=1)] = field(
        default=64, metadata=doc("open uploads of one project at a time")
    )
    project_bytes: Annotated[int, Meta(ge=1)] = field(
        default=1 << 41,
        metadata=doc(
            "bytes that all open uploads of one project take in the object store; default 2 TiB"
        ),
    )
    days: Annotated[float, Meta(gt=0, le=MAX_DAYS)] = field(
        default=3.0,
        metadata=doc("how long an upload is kept after its newest part before it is deleted"),
    )


@dataclass(frozen=True)
class AuditSettings:
    """What the disk of the audit log keeps free."""

    reserve_bytes: Annotated[int, Meta(ge=MIN_RESERVE)] = field(
        default=64 << 20,
        metadata=doc(
            "room that is kept on the disk for results and alarms when it is full: 4 MiB or more;"
            " less on a disk of which it would be more than a 64th, or which has not twice as much"
        ),
    )
    warning_bytes: Annotated[int, Meta(ge=0)] = field(
        default=1 << 30,
        metadata=doc("free space of the disk below which it is said and recorded; 0: never"),
    )


@dataclass(frozen=True)
class ControlConfig:
    """Everything a control plane is told."""

    cluster_id: str = field(
        metadata=doc("identifier of the appliance, part of every certificate; never changes")
    )
    data: Path = field(
        metadata=doc("data directory: keys, state, audit log; `.` is the folder of this file"),
    )
    objects: str = field(
        default="",
        metadata=doc("fsspec URL of sealed objects; folder `objects` of the data directory"),
    )
    roles: Path | None = field(
        default=None,
        metadata=doc("file with roles of this site's own ([access](access.md#roles-of-a-site))"),
    )
    threads: Annotated[int, Meta(ge=1)] = field(
        default=16, metadata=doc("threads that work on calls")
    )
    listen: ControlListen = field(default_factory=ControlListen)
    gateway: GatewayAddresses = field(default_factory=GatewayAddresses)
    limits: RequestLimits = field(default_factory=RequestLimits)
    scheduling: Scheduling = field(default_factory=Scheduling)
    uploads: Uploading = field(default_factory=Uploading)
    audit: AuditSettings = field(default_factory=AuditSettings)
    strangers: StrangerLimits = field(default_factory=StrangerLimits)
    callers: CallerLimits = field(default_factory=CallerLimits)

    @property
    def objects_url(self) -> str:
        """Where sealed objects lie."""
        return self.objects or (self.data.resolve() / "objects").as_uri()


def audit_origin(cluster_id: str) -> str:
    """Name of the audit log in its checkpoints."""
    return f"appliance/{cluster_id}/audit"
