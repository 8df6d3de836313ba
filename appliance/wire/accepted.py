"""Which certificates of gateways count, for a server that cannot ask the control plane: a worker.

The attack: the key of a gateway that was evicted, or a copy of a key that was replaced, asks a
replica, past the rights and the audit log, for as long as its certificate holds. Rules kept here:
* the control plane says which certificates count and at what time that was so; one that was issued
  before that time and is not named is refused;
* one that was issued later is taken: while the control plane is away from this node alone, gateways
  renew, and this node must go on answering them;
* before anything was heard, everything is taken.

The agent of a node writes the file, its workers read it at each judgement of a call. Both are in
one folder of one user; times are those of the control plane's clock alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from appliance.core.errors import Unauthenticated, Unavailable
from appliance.core.files import write_durably
from appliance.crypto.reading import CLOCK_SKEW, not_before, serial_of

FILE = "gateways.json"

ISSUING = timedelta(seconds=10)
"""A certificate may be that old before the control plane names it."""


@dataclass(frozen=True)
class AcceptedSerials:
    """Serial numbers (hexadecimal) that counted `as_of` a time (aware)."""

    serials: frozenset[str]
    as_of: datetime

    def check(self, certificate: bytes) -> None:
        """Raise Unauthenticated when a certificate (PEM) counts no more."""
        issued = not_before(certificate) + CLOCK_SKEW
        if serial_of(certificate) not in self.serials and issued + ISSUING <= self.as_of:
            raise Unauthenticated(
                "this certificate was replaced, or its gateway was evicted: let it join again"
            )

    def document(self) -> bytes:
        """As it stands in the file; nothing secret."""
        members = {"serials": sorted(self.serials), "as_of": self.as_of.isoformat()}
        return json.dumps(members).encode()

    @classmethod
    def parse(cls, document: bytes) -> AcceptedSerials:
        """Read what `document` made. Raises ValueError, KeyError or TypeError."""
        members = json.loads(document)
        return cls(frozenset(members["serials"]), datetime.fromisoformat(members["as_of"]))


class AcceptedFile:
    """What an agent was told last, below its folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, accepted: AcceptedSerials) -> None:
        """Replace it in one step. Raises Exhausted or OSError; the one before stays then."""
        write_durably(self.path, accepted.document())

    def check(self, certificate: bytes) -> None:
        """Raise Unauthenticated when a certificate counts no more, Unavailable when none can tell.

        Reads the disk.
        """
        try:
            accepted = AcceptedSerials.parse(self.path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unavailable(
                f"{self.path} cannot be read ({error}): remove it, its agent writes it anew"
            ) from error
        accepted.check(certificate)
