"""Configuration of the control plane: `control.toml` in the data directory, written by `init`.

Keys come as paths of files in the data directory, never as values. `appliance.core.config` reads
it; docs/control.md shows the table that is made from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from appliance.control.audit.growing import LEAST_RESERVE
from appliance.core.config import doc
from appliance.core.errors import InvalidInput
from appliance.wire.admission import CallerLimits, StrangerLimits

LEAST_SILENCE = 15.0
MAX_RETRY_SECONDS = 1800
MAX_DAYS = 36_500


@dataclass(frozen=True)
class Listen:
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
class Limits:
    """How much callers may ask for."""

    anonymous_per_second: float = field(
        default=1.0,
        metadata=doc("calls without an identity from one address, and as many with a refused one"),
    )
    anonymous_burst: int = field(default=30, metadata=doc("such calls that may come at once"))


@dataclass(frozen=True)
class Scheduling:
    """When work is given up on a node."""

    node_lost_seconds: float = field(
        default=300.0,
        metadata=doc("silence of a node after which its work starts elsewhere; 15 or more"),
    )

    retry_seconds: float = field(
        default=60.0,
        metadata=doc(
            "pause after a start of a job whose ranks failed; five times as long after the next one"
            " in a row, half an hour at most"
        ),
    )

    checkpoint_days: float = field(
        default=14.0,
        metadata=doc("how long checkpoints are kept after their job has ended, however it ended"),
    )

    def __post_init__(self) -> None:
        """Refuse what would lose nodes that are there."""
        if not self.node_lost_seconds >= LEAST_SILENCE:
            raise InvalidInput(
                f"scheduling.node_lost_seconds is {LEAST_SILENCE:g} or more: a node is heard each"
                " second, and its server may be busy"
            )
        if not 0 <= self.retry_seconds <= MAX_RETRY_SECONDS:
            raise InvalidInput(f"scheduling.retry_seconds is 0 to {MAX_RETRY_SECONDS}")
        if not 0 <= self.checkpoint_days <= MAX_DAYS:
            raise InvalidInput(f"scheduling.checkpoint_days is 0 to {MAX_DAYS:,}")


@dataclass(frozen=True)
class Uploading:
    """What may be on its way in, part by part, and how long."""

    per_caller: int = field(
        default=16, metadata=doc("open uploads of one caller in one project at a time")
    )
    per_project: int = field(default=64, metadata=doc("open uploads of one project at a time"))
    project_bytes: int = field(
        default=1 << 41,
        metadata=doc(
            "bytes that all open uploads of one project take in the object store; default 2 TiB"
        ),
    )
    days: float = field(
        default=3.0,
        metadata=doc("how long an upload is kept after its newest part before it is deleted"),
    )

    def __post_init__(self) -> None:
        """Refuse what no upload can be done with."""
        if min(self.per_caller, self.per_project, self.project_bytes) < 1:
            raise InvalidInput("uploads.per_caller, per_project and project_bytes are 1 or more")
        if not 0 < self.days <= MAX_DAYS:
            raise InvalidInput(f"uploads.days is more than 0 and at most {MAX_DAYS:,}")


@dataclass(frozen=True)
class AuditSettings:
    """What the disk of the audit log keeps free."""

    reserve_bytes: int = field(
        default=64 << 20,
        metadata=doc(
            "room that is kept on the disk for results and alarms when it is full: 4 MiB or more;"
            " less on a disk of which it would be more than a 64th, or which has not twice as much"
        ),
    )
    warning_bytes: int = field(
        default=1 << 30,
        metadata=doc("free space of the disk below which it is said and recorded; 0: never"),
    )

    def __post_init__(self) -> None:
        """Refuse what would be no room."""
        if self.reserve_bytes < LEAST_RESERVE:
            raise InvalidInput(f"audit.reserve_bytes is {LEAST_RESERVE} or more")
        if self.warning_bytes < 0:
            raise InvalidInput("audit.warning_bytes is 0 or more")


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
    threads: int = field(default=16, metadata=doc("threads that work on calls"))
    listen: Listen = field(default_factory=Listen)
    gateway: GatewayAddresses = field(default_factory=GatewayAddresses)
    limits: Limits = field(default_factory=Limits)
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
