"""Why a server could not be reached, in a sentence that says what to do.

gRPC tells it as a text alone, `failed to connect to all addresses; last error: ...`, and gives
every cause the same code. Rules kept here:
* a server that answers with a certificate that is not believed is `Untrusted`, not away: waiting
  does not help, and a look at "whether it runs" misleads;
* what TLS said stands in the sentence;
* a text that is not known becomes the general sentence, never a guess.

The attack that must not look like an outage: somebody answers in the place of the server. Called by
`appliance.wire.status`; `tests/wire/test_unreachable.py` holds the texts against the gRPC in use.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from appliance.core.errors import Unavailable, Untrusted

_PEER = re.compile(r"\b(?:ipv4|ipv6):(\S+?): ")
_NO_HOST = re.compile(r"(?:lookup failed for|errors resolving) (\S+?)[:\s]", re.IGNORECASE)
_TLS_SAID = re.compile(r"CERTIFICATE_VERIFY_FAILED: ([a-zA-Z0-9 ,-]+)")

_GENERAL = "the server{at} cannot be reached: check its address and that it runs"
_FOREIGN = (
    "the server{at} is not one that the CA certificate in use vouches for (TLS says: {tls}): use "
    "`ca.pem` of the appliance that is meant, and check that the address is its own"
)
_NO_AUTHORITY = (
    "the CA certificate in use cannot be read: use `ca.pem` of the appliance that is meant"
)
_ENDED = (
    "the certificate of the server{at} is not valid at this time (TLS says: {tls}): compare both "
    "clocks, and renew the certificate there"
)
_OTHER_KIND = (
    "the server{at} proved to be of another kind or name than the one that is meant: check the "
    "port; each process of the appliance listens on its own"
)
_NO_TLS = "what listens{on} does not speak TLS: check the port, it is that of something else"
_NO_GRPC = (
    "what listens{on} speaks TLS, and not gRPC: check the port, it is that of something else, such "
    "as the OpenAI-compatible API"
)
_REFUSED = "nothing listens{on}: check the address, and that the server runs"
_CLOSED = (
    "the server{at} ended the connection at once: it may be starting, or the port is that of "
    "something else"
)
_NO_NAME = "there is no host {host}: check how the address is written"
_NO_WAY = "there is no way through the network to the server{at}: check its address and the network"

_SENTENCES: tuple[tuple[str, type[Unavailable], str], ...] = (
    ("certificate has expired", Untrusted, _ENDED),
    ("certificate is not yet valid", Untrusted, _ENDED),
    ("CERTIFICATE_VERIFY_FAILED", Untrusted, _FOREIGN),
    ("Hostname Verification Check failed", Untrusted, _OTHER_KIND),
    ("Failed to create security handshaker", Untrusted, _NO_AUTHORITY),
    ("WRONG_VERSION_NUMBER", Unavailable, _NO_TLS),
    ("missing selected ALPN property", Unavailable, _NO_GRPC),
    ("Connection refused", Unavailable, _REFUSED),
    ("hostname lookup", Unavailable, _NO_NAME),
    ("errors resolving", Unavailable, _NO_NAME),
    ("Network is unreachable", Unavailable, _NO_WAY),
    ("No route to host", Unavailable, _NO_WAY),
    ("Handshake read failed", Unavailable, _CLOSED),
    ("Socket closed", Unavailable, _CLOSED),
    ("Connection reset", Unavailable, _CLOSED),
)
"""Part of gRPC's text, what it means, and how it is said; the first that fits counts."""


def explain(details: str) -> Unavailable:
    """What the text of a call that ended with UNAVAILABLE means."""
    peer = _PEER.search(details)
    # gRPC writes the brackets of IPv6 as in a URL.
    where = unquote(peer[1]) if peer else ""
    at, on = (f" at {where}", f" on {where}") if peer else ("", " there")
    host, tls = _NO_HOST.search(details), _TLS_SAID.search(details)
    for part, kind, sentence in _SENTENCES:
        if part in details and (host or "{host}" not in sentence):
            return kind(
                sentence.format(
                    at=at,
                    on=on,
                    host=host[1] if host else "",
                    tls=tls[1].strip() if tls else "certificate verify failed",
                )
            )
    return Unavailable(_GENERAL.format(at=at))
