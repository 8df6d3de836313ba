"""Proof that somebody holds the private key of a certificate, outside of a TLS handshake.

A certificate that has ended passes no handshake. Rules kept here:
* what is signed begins with words for this use, so that a signature made for something else proves
  nothing here, and the other way round;
* its parts are digests of fixed length, and the cluster is one of them: what was signed for one
  appliance, challenge or request cannot be read as another.

Called by the agent (`prove`) and by the control plane's enrolment (`check`).
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.core.errors import Unauthenticated
from appliance.crypto.reading import (
    certified_key,
    load_private,
)

_WORDS = b"appliance certificate recovery 1"
_ALGORITHM = ec.ECDSA(hashes.SHA256())


def prove(
    key_pem: bytes, certificate_pem: bytes, cluster: str, challenge: bytes, request: bytes
) -> bytes:
    """Sign a challenge and a certificate request; DER (FIPS 186-5, ECDSA with SHA-256).

    Args:
        key_pem: private key of the certificate.
        certificate_pem: the certificate that is to be replaced.
        cluster: id of the appliance.
        challenge: of the control plane.
        request: certificate request, PEM, that the proof is for.
    """
    signed = _signed(certificate_pem, cluster, challenge, request)
    return load_private(key_pem).sign(signed, _ALGORITHM)


def check(
    certificate_pem: bytes, cluster: str, challenge: bytes, request: bytes, signature: bytes
) -> None:
    """Raise Unauthenticated unless the holder of a certificate's key has signed."""
    signed = _signed(certificate_pem, cluster, challenge, request)
    try:
        certified_key(certificate_pem).verify(signature, signed, _ALGORITHM)
    except InvalidSignature as error:
        raise Unauthenticated(
            "the request is not signed with the key of its certificate"
        ) from error


def _signed(*parts: bytes | str) -> bytes:
    """The words and the SHA-256 of each part."""
    digests = (
        hashlib.sha256(part.encode() if isinstance(part, str) else part).digest() for part in parts
    )
    return _WORDS + b"".join(digests)
