"""What a certificate says: who its owner is, when it holds, of which key it is.

The attack: a peer presents a certificate that expired, was made for another purpose, or by another
authority. gRPC checks the chain once per connection and neither purpose nor expiry after that.
Rules kept here:
* identity is exactly one `spiffe://<cluster>/<kind>/<id>` name; common names are for people;
* `peer_identity` refuses what a certificate does not say;
* bytes that are no certificate or key of ours are `InvalidInput`, never another exception.

Called by every mTLS server, by machines about their own certificates, and by `certs`.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from appliance.core.errors import ApplianceError, InvalidInput, Unauthenticated
from appliance.core.identity import Principal, parse_spiffe

RENEW_AFTER = timedelta(days=1)
CLOCK_SKEW = timedelta(minutes=5)
SHOWN_EARLY = timedelta(days=1)
"""So long before it was made a certificate that servers show begins: others' clocks judge it."""
MAX_PEM = 1 << 16
PURPOSES = {
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
}
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for bytes that are something else."""


def peer_identity(
    cert_pem: bytes,
    cluster: str,
    now: datetime,
    *,
    need: Literal["client", "server"],
    ca_pem: bytes | None = None,
) -> Principal:
    """Who the peer is, by the certificate of its connection; to be asked on every call.

    Args:
        cert_pem: the leaf (gRPC: `auth_context()["x509_pem_cert"]`).
        cluster: the cluster it must belong to.
        now: aware time.
        need: the purpose it must have been issued for.
        ca_pem: check the issuer's signature too, where TLS has not done so already.

    Raises:
        Unauthenticated: not readable, not valid now, a CA, not for this purpose, or not of this
            cluster.
    """
    certificate = _load_peer(cert_pem)
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise _refused("is not valid at this time; renew it, and check both clocks")
    try:
        extensions = certificate.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        identities = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound as error:
        raise _refused("does not say what it is for; use one that this appliance issued") from error
    except UNREADABLE as error:
        raise _refused("cannot be read") from error
    if constraints.ca:
        raise _refused("is a certificate of an authority, not of a peer")
    if PURPOSES[need] not in purposes:
        raise _refused(f"was not issued for a {need}")
    if ca_pem is not None:
        _check_issuer(certificate, ca_pem)
    if len(identities) != 1:
        raise _refused("does not name exactly one identity")
    try:
        return parse_spiffe(identities[0], cluster)
    except ApplianceError as error:
        raise _refused("names no identity of this cluster") from error


def fingerprint(cert_pem: bytes) -> str:
    """SHA-256 of a certificate (DER), hex."""
    der = _load(cert_pem).public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest()


def serial_of(cert_pem: bytes) -> str:
    """Serial number of a certificate, hex."""
    return f"{_load(cert_pem).serial_number:x}"


def renew_time(cert_pem: bytes, early: timedelta = CLOCK_SKEW) -> datetime:
    """When a certificate is a day old, or at half its life if that is sooner; no clock is asked.

    `early`: so long before it was issued it begins.
    """
    certificate = _load(cert_pem)
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return start + min((end - start) / 2, early + RENEW_AFTER)


def not_before(cert_pem: bytes) -> datetime:
    """When a certificate begins (aware, UTC)."""
    return _load(cert_pem).not_valid_before_utc


def not_after(cert_pem: bytes) -> datetime:
    """When a certificate ends (aware, UTC)."""
    return _load(cert_pem).not_valid_after_utc


def issued_by(cert_pem: bytes, ca_pem: bytes) -> bool:
    """Whether an authority has signed a certificate. Raises InvalidInput when one is none."""
    try:
        _check_issuer(_load(cert_pem), ca_pem)
    except Unauthenticated:
        return False
    return True


def is_pair(key_pem: bytes, cert_pem: bytes) -> bool:
    """Whether a certificate is one of this private key. Raises InvalidInput when one is none."""
    return bool(load_private(key_pem).public_key() == _public(_load(cert_pem)))


def certified_key(cert_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The key that a certificate is about. Raises InvalidInput when it is none of ours."""
    return check_public(_public(_load(cert_pem)))


def _refused(why: str) -> Unauthenticated:
    return Unauthenticated(f"The peer's certificate {why}.")


def _load(cert_pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(cert_pem)
    except UNREADABLE as error:
        raise InvalidInput("This is not a certificate in PEM form.") from error


def _public(certificate: x509.Certificate) -> object:
    try:
        return certificate.public_key()
    except UNREADABLE as error:
        raise InvalidInput("The key of this certificate cannot be read.") from error


def _load_peer(cert_pem: bytes) -> x509.Certificate:
    if len(cert_pem) > MAX_PEM:
        raise _refused("is too long")
    try:
        return _load(cert_pem)
    except InvalidInput as error:
        raise _refused("cannot be read") from error


def _check_issuer(certificate: x509.Certificate, ca_pem: bytes) -> None:
    try:
        certificate.verify_directly_issued_by(_load(ca_pem))
    except (ValueError, TypeError, InvalidSignature) as error:
        raise _refused("was issued by another authority") from error


def check_public(key: object) -> ec.EllipticCurvePublicKey:
    """A public key of a kind that certificates of ours have. Raises InvalidInput."""
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(
        key.curve, ec.SECP256R1 | ec.SECP384R1
    ):
        return key
    raise InvalidInput("The key of a certificate is an EC key on P-256 or P-384; make a new one.")


def server_pair_end(key_pem: bytes, cert_pem: bytes, now: datetime) -> datetime:
    """When a server's certificate ends, of any authority and with any kind of key.

    Args:
        key_pem: its private key, PEM, not encrypted.
        cert_pem: the certificate, and the chain behind it, PEM.
        now: aware time.

    Raises InvalidInput when they are no pair, or it does not hold now.
    """
    try:
        first, *_ = x509.load_pem_x509_certificates(cert_pem)
        own = serialization.load_pem_private_key(key_pem, password=None).public_key()
        public = first.public_key()
    except UNREADABLE as error:
        raise InvalidInput("they are not a certificate and a private key in PEM form") from error
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if own.public_bytes(*form) != public.public_bytes(*form):
        raise InvalidInput("the certificate is not that of its key")
    begin, end = first.not_valid_before_utc, first.not_valid_after_utc
    if now >= end:
        raise InvalidInput(f"the certificate ended on {end:%Y-%m-%d %H:%M}Z")
    if now < begin:
        raise InvalidInput(f"the certificate begins on {begin:%Y-%m-%d %H:%M}Z")
    return end


def load_private(key_pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The key in a PEM file. Raises InvalidInput when it is no private EC key."""
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except UNREADABLE as error:
        raise InvalidInput("This is not an unencrypted private key in PEM form.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidInput("This private key is not an EC key; make a new one.")
    return key
