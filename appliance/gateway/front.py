"""What the gateway shows to its callers: two certificates, each replaced while it runs.

The gRPC front shows one of the appliance's authority, which the appliance's own command and library
expect under `gateway.appliance`; so does the HTTPS front, unless the site has files of its own PKI
for it. Rules kept here:
* the one of the appliance is asked for with the gateway's own identity, when it is a day old and
  after each change of that identity; its key is made here, new each time; key and certificate are
  one private file, from which a gateway starts while the control plane is away;
* files of the site are read again when they change; a pair that is none, that has ended or has not
  begun is refused with a sentence, and what was shown before stays;
* a connection that is open goes on with what its handshake saw; the next one sees the new.

The attack: a front certificate that is used to call the control plane: it is for servers alone.
Called by the composition root.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from appliance.core.errors import ApplianceError, InvalidInput, Unauthenticated
from appliance.core.files import read_secret, write_durably
from appliance.crypto.certs import make_csr, new_private_key
from appliance.crypto.reading import (
    SHOWN_EARLY,
    is_pair,
    issued_by,
    not_after,
    not_before,
    renew_time,
    server_pair_end,
)
from appliance.wire.tls import ServerPair

FILE = "front.pem"
LOOK_SECONDS = 5.0
ASK_AGAIN_SECONDS = 60.0
SETTLED_SECONDS = 3600.0
NOTICE = timedelta(days=30)
"""So long before its end a certificate of the site is spoken of, each day."""
_BEGIN = b"-----BEGIN CERTIFICATE-----"

logger = logging.getLogger(__name__)

Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class SiteFiles:
    """Certificate (with its chain) and key of the site's own PKI, PEM."""

    certificate: Path
    key: Path

    def stamp(self) -> Stamp:
        """Another one whenever a file is. Raises OSError."""
        found = (self.certificate.stat(), self.key.stat())
        return tuple((each.st_ino, each.st_mtime_ns, each.st_size) for each in found)


class Front:
    """Holds what is shown now.

    Args:
        folder: private folder of the gateway.
        ask: exchanges a certificate request for a certificate of the appliance.
        authority: certificate of the appliance's authority, PEM.
        site: files for the HTTPS front; None: it shows what the gRPC front shows.
        now: the time, aware.
    """

    def __init__(
        self,
        folder: Path,
        ask: Callable[[str], Awaitable[str]],
        authority: bytes,
        site: SiteFiles | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._file = folder / FILE
        self._ask = ask
        self._authority = authority
        self._site = site
        self._now = now
        self._pair: ServerPair | None = None
        self._own: ssl.SSLContext | None = None
        self._theirs: ssl.SSLContext | None = None
        self._their_end: datetime | None = None
        self._seen: Stamp | None = None
        self._refusal = ""
        self._said = datetime.min.replace(tzinfo=UTC)
        self._soon = asyncio.Event()

    def load(self) -> bool:
        """Take up what was shown last; whether that is something that clients take now."""
        try:
            key, begin, certificate = read_secret(self._file).partition(_BEGIN)
            self._show(ServerPair(key, begin + certificate))
        except (ApplianceError, OSError) as error:
            if self._file.exists():
                logger.warning("%s cannot be used, and is made anew: %s", self._file, error)
            return False
        return not_before(self.pair.certificate) <= self._now() < not_after(self.pair.certificate)

    def keep(self, pair: ServerPair) -> None:
        """Show another pair from now on. Raises InvalidInput when it is none, and OSError."""
        if not is_pair(pair.key, pair.certificate):
            raise InvalidInput("the certificate is not that of its key")
        self._store(pair)
        self._show(pair)

    def _store(self, pair: ServerPair) -> None:
        write_durably(self._file, pair.key + pair.certificate)

    @property
    def pair(self) -> ServerPair:
        """What the gRPC front shows; the same object until it is another pair."""
        if self._pair is None:
            raise TypeError("there is no front certificate yet")
        return self._pair

    @property
    def context(self) -> ssl.SSLContext:
        """What the HTTPS front shows."""
        found = self._theirs or self._own
        if found is None:
            raise TypeError("there is no front certificate yet")
        return found

    @property
    def end(self) -> datetime:
        """When the first of the two ends."""
        own = not_after(self.pair.certificate)
        return own if self._their_end is None else min(own, self._their_end)

    def renew_soon(self) -> None:
        """Ask for another certificate now, under a new identity."""
        self._soon.set()

    async def renew(self) -> None:
        """Ask for another certificate. Raises ApplianceError or OSError; then nothing changed."""
        key = new_private_key()
        certificate = (await self._ask(make_csr(key).decode())).encode()
        if not (is_pair(key, certificate) and issued_by(certificate, self._authority)):
            raise Unauthenticated("the control plane gave a front certificate of another key")
        pair = ServerPair(key, certificate)
        # In a thread: a disk that hangs must stop no answer.
        await asyncio.to_thread(self._store, pair)
        self._show(pair)
        logger.info("callers see a certificate until %s", not_after(certificate))

    async def run(self) -> None:
        """Renew and look at the site's files for ever."""
        # By this process's own time: a clock that was ahead must not put the next one off.
        own_time = asyncio.get_running_loop().time
        ask_at, wanted = own_time(), False
        while True:
            self.reload_site_files()
            now = own_time()
            if self._soon.is_set():
                self._soon.clear()
                ask_at, wanted = now, True
            if (wanted or self._is_due()) and now >= ask_at:
                ask_at = now + ASK_AGAIN_SECONDS
                try:
                    await self.renew()
                except (ApplianceError, OSError) as error:
                    logger.warning("the front certificate could not be renewed: %s", error)
                else:
                    # Not each minute under a clock that is far ahead.
                    ask_at, wanted = now + SETTLED_SECONDS, False
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._soon.wait()
            except TimeoutError:
                continue

    def reload_site_files(self) -> None:
        """Show the site's files, when they are others than at the last look."""
        if self._site is None:
            return
        try:
            stamp = self._site.stamp()
            if stamp != self._seen:
                self._take(self._site, stamp)
            self._refusal = ""
        except (ApplianceError, OSError, ssl.SSLError) as error:
            # Looked at again each time: it may be that only its mode, or the time, was wrong.
            before = "the one before stays" if self._theirs else "the appliance's own is shown"
            self._say_refusal(f"front.certificate is not shown, {before}: {error}")
        self._say_end()

    def _say_refusal(self, sentence: str) -> None:
        if sentence != self._refusal:
            self._refusal = sentence
            logger.error("%s", sentence)

    def _take(self, site: SiteFiles, stamp: Stamp) -> None:
        certificate, key = site.certificate.read_bytes(), read_secret(site.key)
        end = server_pair_end(key, certificate, self._now())
        context = _context(site.certificate, site.key)
        if site.stamp() != stamp:
            return  # somebody writes them just now: looked at again
        self._theirs, self._their_end, self._seen = context, end, stamp
        logger.info("OpenAI clients see %s, until %s", site.certificate, end)

    def _say_end(self) -> None:
        now, end = self._now(), self._their_end
        if end is not None and end - now < NOTICE and now - self._said >= timedelta(days=1):
            self._said = now
            logger.warning("front.certificate ends on %s: put another pair there", end)

    def _is_due(self) -> bool:
        return self._now() >= renew_time(self.pair.certificate, SHOWN_EARLY)

    def _show(self, pair: ServerPair) -> None:
        if not is_pair(pair.key, pair.certificate):
            raise InvalidInput("the certificate is not that of its key")
        self._own, self._pair = _context(self._file), pair


def _context(certificate: Path, key: Path | None = None) -> ssl.SSLContext:
    """TLS with a certificate and the key in its own file, or in the same one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context
