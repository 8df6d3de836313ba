"""Where the control plane is, as a machine is told; part of the configuration of nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from appliance.core.config import doc


@dataclass(frozen=True)
class ControlAddress:
    """Where the control plane is, and how to recognise it."""

    ca: Path = field(metadata=doc("CA certificate of the appliance, PEM"))
    join: str = field(
        default="127.0.0.1:7443", metadata=doc("`host:port` of the API, to join through")
    )
    machines: str = field(
        default="127.0.0.1:7444", metadata=doc("`host:port` of the listener for machines")
    )
    ca_fingerprint: str = field(
        default="",
        metadata=doc(
            "SHA-256 of that certificate, hexadecimal, as it came with the join token; needed to"
            " join"
        ),
    )
