"""The certificate that the control plane's listeners show, renewed in memory.

Rules kept here:
* key and certificate never leave this process, and neither outlives it;
* it holds ten days and is replaced when it is a day old, at the first handshake after that; so it
  is too when it does not hold by this machine's clock, which may have been set;
* a connection that is open goes on with what its handshake saw;
* when no other can be issued, the one before stays, and that is said.

Called by gRPC at each handshake, in a thread of its own, and by what tells when things end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from appliance.core.errors import ApplianceError
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import Authority, make_csr, new_private_key
from appliance.crypto.reading import RENEW_AFTER, SHOWN_EARLY, not_after, not_before
from appliance.wire.tls import ServerPair

CONTROL = Principal(PrincipalKind.CONTROL, "control")
logger = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


class OwnCertificate:
    """Holds it.

    Args:
        authority: of the appliance.
        clock: the time by which clients judge certificates, aware.
    """

    def __init__(self, authority: Authority, clock: Callable[[], datetime] = _now) -> None:
        self._authority = authority
        self._clock = clock
        self._lock = threading.Lock()
        self._pair = self._issue()

    @property
    def end(self) -> datetime:
        """When the one of now ends."""
        return not_after(self._pair.certificate)

    def current(self) -> ServerPair:
        """What to show; the same object until it is another pair. Never raises."""
        with self._lock:
            certificate, now = self._pair.certificate, self._clock()
            if not not_before(certificate) <= now < self._renew_at:
                try:
                    self._pair = self._issue()
                except (ApplianceError, ValueError):
                    logger.exception("the control plane has no other certificate to show")
                else:
                    logger.info("the control plane shows a certificate until %s", self.end)
            return self._pair

    def _issue(self) -> ServerPair:
        key, now = new_private_key(), self._clock()
        certificate = self._authority.issue(
            make_csr(key),
            CONTROL,
            server=True,
            client=False,
            early=SHOWN_EARLY,
            now=now,
        )
        self._renew_at = now + RENEW_AFTER
        return ServerPair(key, certificate)
