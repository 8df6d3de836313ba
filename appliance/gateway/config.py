"""What a gateway can be told; the table in docs/gateway.md is made from this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from msgspec import Meta

from appliance.core.addresses import host_port, split_address
from appliance.core.config import Retired, doc
from appliance.core.errors import InvalidInput
from appliance.gateway.front import SiteFiles
from appliance.wire.admission import StrangerLimits


@dataclass(frozen=True)
class GatewayListen:
    """Where callers reach the gateway."""

    grpc: str = field(
        default="127.0.0.1:8443", metadata=doc("`host:port` of the gRPC API, over TLS")
    )
    openai: str = field(
        default="127.0.0.1:8444", metadata=doc("`host:port` of the OpenAI-compatible API, HTTPS")
    )


@dataclass(frozen=True)
class GatewayLimits:
    """What one caller, and all together, may take."""

    calls: Annotated[int, Meta(ge=0)] = field(
        default=1024,
        metadata=doc("answers in work at a time, of all callers; each endpoint has a share"),
    )
    calls_per_caller: Annotated[int, Meta(ge=0)] = field(
        default=64, metadata=doc("answers in work at a time, of one caller")
    )
    calls_per_second: Annotated[float, Meta(ge=0)] = field(
        default=200.0,
        metadata=doc("calls of one caller in the long run, on each of the two fronts"),
    )
    call_burst: Annotated[int, Meta(ge=0)] = field(
        default=2000, metadata=doc("calls of one caller that may come at once, on each front")
    )
    body_bytes: Annotated[int, Meta(ge=1)] = field(
        default=1 << 20, metadata=doc("largest request; a larger one is refused")
    )
    connections: Annotated[int, Meta(ge=0)] = field(
        default=2048, metadata=doc("open connections to the OpenAI-compatible API")
    )
    connections_per_source: Annotated[int, Meta(ge=0)] = field(
        default=512,
        metadata=doc("those of one address (of an IPv6 /64); more behind a proxy of your own"),
    )
    connections_per_second: Annotated[float, Meta(ge=0)] = field(
        default=100.0, metadata=doc("new connections of one address in the long run")
    )
    connection_burst: Annotated[int, Meta(ge=0)] = field(
        default=300, metadata=doc("new connections of one address that may come at once")
    )
    refused_per_second: Annotated[float, Meta(ge=0)] = field(
        default=2.0,
        metadata=doc(
            "refused tokens of one address, and refused calls of one caller with a record each, "
            "in the long run"
        ),
    )
    refused_burst: Annotated[int, Meta(ge=0)] = field(
        default=60, metadata=doc("such refusals that may come at once")
    )
    answer_seconds: Annotated[float, Meta(gt=0)] = field(
        default=3600.0, metadata=doc("longest time an answer may take; then it fails")
    )
    send_seconds: Annotated[float, Meta(gt=0)] = field(
        default=30.0, metadata=doc("time a caller may read nothing; then its answer ends")
    )


@dataclass(frozen=True)
class RoutingSettings:
    """How replicas are chosen, watched and replaced."""

    wait_seconds: Annotated[float, Meta(ge=0)] = field(
        default=30.0,
        metadata=doc("time an answer waits for a replica when none is ready but one may come"),
    )
    queue: Annotated[int, Meta(ge=0)] = field(
        default=256,
        metadata=doc(
            "answers without a token that wait for their turn at one endpoint whose replicas are"
            " full"
        ),
    )
    queue_seconds: Annotated[float, Meta(ge=0)] = field(
        default=120.0, metadata=doc("longest time an answer waits for its turn; then 429")
    )
    waiting: Annotated[int, Meta(ge=0)] = field(
        default=128,
        metadata=doc("answers without a token that wait for a replica of one endpoint at a time"),
    )
    settle_seconds: Annotated[float, Meta(ge=0)] = field(
        default=5.0,
        metadata=doc("time a replica that broke may come back before it counts as dead"),
    )
    silent_seconds: Annotated[float, Meta(gt=0)] = field(
        default=0.85,
        metadata=doc("silence after which a replica is lost; heartbeats come each 0.25 s"),
    )
    stall_seconds: Annotated[float, Meta(gt=0)] = field(
        default=10.0,
        metadata=doc("time a busy engine may make no step; then its answers go on elsewhere"),
    )
    first_token_seconds: Annotated[float, Meta(gt=0)] = field(
        default=120.0,
        metadata=doc("longest time a replica works on an answer until its first token"),
    )
    between_tokens_seconds: Annotated[float, Meta(gt=0)] = field(
        default=60.0, metadata=doc("longest time between two tokens from one replica")
    )
    retries: Annotated[int, Meta(ge=0)] = field(
        default=2, metadata=doc("further replicas to try for an answer without a token so far")
    )
    retry_share: Annotated[float, Meta(ge=0, le=1)] = field(
        default=0.1, metadata=doc("share of calls that may be retried, beyond a first few")
    )
    continuations: Annotated[int, Meta(ge=0)] = field(
        default=8, metadata=doc("times a begun answer may go on with another replica")
    )
    answers_per_replica: Annotated[int, Meta(ge=1)] = field(
        default=512,
        metadata=doc(
            "most answers in one replica at a time; fewer where it says how many it works on"
        ),
    )
    failures: Annotated[int, Meta(ge=1)] = field(
        default=3, metadata=doc("failures in a row that take a replica out of rotation")
    )


@dataclass(frozen=True)
class FrontFiles:
    """What OpenAI clients see, when the site has a PKI of its own; both files or none."""

    certificate: Path | None = field(
        default=None,
        metadata=doc(
            "certificate of the site's own PKI with its chain, PEM, shown to OpenAI clients; read"
            " again when it changes; unset: one of the appliance's"
        ),
    )
    key: Path | None = field(default=None, metadata=doc("its private key, PEM, mode 0600"))

    def __post_init__(self) -> None:
        """Refuse one without the other."""
        if (self.certificate is None) != (self.key is None):
            raise InvalidInput("front.certificate and front.key belong together: set both or none")

    @property
    def files(self) -> SiteFiles | None:
        """Both, if they are set."""
        if self.certificate is None or self.key is None:
            return None
        return SiteFiles(self.certificate, self.key)


@dataclass(frozen=True)
class GatewayConfig:
    """One gateway."""

    RETIRED: ClassVar[Mapping[str, Retired]] = {
        "view_seconds": Retired(
            "0.2",
            advice=(
                "its value is ignored; stale_view_seconds says how long an old view decides (900;"
                " 0 is strict)"
            ),
        )
    }

    cluster_id: str = field(metadata=doc("id of the appliance's cluster"))
    ca: Path = field(metadata=doc("CA certificate of the appliance, PEM"))
    ca_fingerprint: str = field(
        default="",
        metadata=doc(
            "SHA-256 of that certificate, hexadecimal, as it came with the join token; unset: the"
            " file is believed"
        ),
    )
    control: str = field(
        default="127.0.0.1:7444",
        metadata=doc("`host:port` of the control plane's listener for machines"),
    )
    join: str = field(
        default="",
        metadata=doc(
            "`host:port` of the control plane's API, to join through; unset: the port before that"
            " of `control`"
        ),
    )
    join_token: Path | None = field(
        default=None,
        metadata=doc(
            "file with the one-use join token, removed when the gateway has joined; unset:"
            " `join.token` beside `ca`"
        ),
    )
    state: Path | None = field(
        default=None,
        metadata=doc(
            "private folder for the gateway's identity, what it shows, and calls that are not in"
            " the audit log yet (`spool`); unset: `state` beside `ca`"
        ),
    )
    key: Path | None = field(
        default=None,
        metadata=doc("of a gateway of 0.1.0: its private key, taken over into `state` once"),
    )
    certificate: Path | None = field(
        default=None, metadata=doc("of a gateway of 0.1.0: the certificate of that key")
    )
    front: FrontFiles = field(default_factory=FrontFiles)
    listen: GatewayListen = field(default_factory=GatewayListen)
    metrics: str = field(default="127.0.0.1:8445", metadata=doc("loopback address of the metrics"))
    stale_view_seconds: Annotated[float, Meta(ge=0)] = field(
        default=900.0,
        metadata=doc(
            "how long calls are decided by what the control plane said last; 0 is strict: while it"
            " is heard, that is ten seconds"
        ),
    )
    limits: GatewayLimits = field(default_factory=GatewayLimits)
    strangers: StrangerLimits = field(default_factory=StrangerLimits)
    routing: RoutingSettings = field(default_factory=RoutingSettings)

    @property
    def api(self) -> str:
        """Address of the control plane's API."""
        if self.join:
            return self.join
        host, number = split_address(self.control, "control")
        return host_port(host, number - 1)

    @property
    def state_folder(self) -> Path:
        """Private folder."""
        return self.state or self.ca.parent / "state"

    @property
    def join_token_file(self) -> Path:
        """Where somebody puts a join token."""
        return self.join_token or self.ca.parent / "join.token"
