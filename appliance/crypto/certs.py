"""The appliance's own certificate authority, and who a peer's certificate says it is.

The attack: a joiner asks for a certificate of another identity, a CA certificate or one for
servers; a server with a certificate of its own poses as another server of the appliance; a peer
presents a certificate that expired, was made for another purpose, or by another authority. gRPC
checks the chain once per connection and neither purpose nor expiry after that.
Rules kept here:
* of a certificate request only the public key is used, after its signature proved that the asker
  holds the key;
* identity is exactly one `spiffe://<cluster>/<kind>/<id>` name; common names are for people;
* a server's DNS names say which server it is, `<kind>.appliance` and `<id>.<kind>.appliance`; they
  come from the principal alone, and nobody is given another name under `appliance`;
* a leaf says explicitly that it is no CA and what it is for; `peer_identity` refuses what it does
  not say.

Called by the control plane (`Authority`), by whoever joins (`new_private_key`, `make_csr`) and by
every mTLS server.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.core.errors import ApplianceError, InvalidInput, Unauthenticated
from appliance.core.identity import SERVER_ZONE, Principal, parse_spiffe, spiffe_id

CA_LIFETIME = timedelta(days=3650)
LEAF_LIFETIME = timedelta(days=10)
"""A long weekend, and a holiday before it, in which nobody is there."""
RENEW_AFTER = timedelta(days=1)
CLOCK_SKEW = timedelta(minutes=5)
LARGEST_PEM = 1 << 16
PURPOSES = {
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
}
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


def new_private_key() -> bytes:
    """A new EC P-256 private key, unencrypted PKCS #8 PEM; a secret."""
    return _private_pem(ec.generate_private_key(ec.SECP256R1()))


def make_csr(key_pem: bytes) -> bytes:
    """A certificate request (PKCS #10 PEM) that proves possession of the key; asks for no more."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(_load_private(key_pem), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def public_key_of(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a request whose signature holds; `InvalidInput` otherwise."""
    if len(csr_pem) > LARGEST_PEM:
        raise InvalidInput("The certificate request is too long.")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key, proved = request.public_key(), request.is_signature_valid
    except _UNREADABLE as error:
        raise InvalidInput("This is not a certificate request in PEM form.") from error
    if not proved:
        raise InvalidInput("The certificate request is not signed by the key it names.")
    return _check_public(key)


@dataclass(frozen=True)
class Authority:
    """The certificate authority of a cluster; `private_key_pem` is secret, kept in the keyring."""

    cluster: str
    certificate_pem: bytes
    private_key_pem: bytes = field(repr=False)

    @classmethod
    def create(cls, cluster_id: str, *, now: datetime | None = None) -> Authority:
        """A new self-signed EC P-256 authority, valid for ten years, that may issue leaves only."""
        now = now or datetime.now(UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"appliance CA {cluster_id}")
        builder = _builder(name, name, key.public_key(), now - CLOCK_SKEW, now + CA_LIFETIME)
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
        certificate = builder.sign(key, hashes.SHA256())
        return cls(
            cluster_id, certificate.public_bytes(serialization.Encoding.PEM), _private_pem(key)
        )

    def fingerprint(self) -> str:
        """SHA-256 of the certificate (DER), hex: by it a joiner recognises this authority."""
        return fingerprint(self.certificate_pem)

    def issue(  # noqa: PLR0913  # what a certificate says has no smaller parts
        self,
        subject: bytes | ec.EllipticCurvePublicKey,
        principal: Principal,
        *,
        server: bool,
        client: bool,
        dns: Iterable[str] = (),
        ips: Iterable[str] = (),
        lifetime: timedelta | None = LEAF_LIFETIME,
        now: datetime | None = None,
    ) -> bytes:
        """A leaf certificate (PEM).

        Args:
            subject: a certificate request (PEM), of which only the key is used, or a public key.
            principal: whose certificate it is; becomes the SPIFFE name.
            server: may be shown by servers; adds the two DNS names of the principal, of which
                every client of ours expects one.
            client: may be shown by clients.
            dns: further DNS names of a server, for clients that are not ours.
            ips: IP addresses of a server.
            lifetime: from now on; never longer than the authority's own. None: all the authority's
                time, from its first moment, so that a clock that is ahead now does no harm later.
            now: aware time; the clock's when None.

        Raises:
            InvalidInput: the request, a name or the purpose is not acceptable.
        """
        if not (server or client):
            raise InvalidInput("A certificate is for servers, for clients or for both.")
        if lifetime is not None and lifetime <= timedelta(0):
            raise InvalidInput("The lifetime of a certificate is longer than nothing.")
        public = public_key_of(subject) if isinstance(subject, bytes) else _check_public(subject)
        now = now or datetime.now(UTC)
        authority = x509.load_pem_x509_certificate(self.certificate_pem)
        start, end = authority.not_valid_before_utc, authority.not_valid_after_utc
        if lifetime is not None:
            start, end = now - CLOCK_SKEW, min(now + lifetime, end)
        names = _names(self.cluster, principal, server=server, dns=dns, ips=ips)
        wanted = {"server": server, "client": client}
        purposes = [PURPOSES[purpose] for purpose, yes in wanted.items() if yes]
        builder = _builder(_name(principal.subject), authority.subject, public, start, end)
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(signs_certificates=False), True),
            (x509.ExtendedKeyUsage(purposes), False),
            (names, False),
            (x509.SubjectKeyIdentifier.from_public_key(public), False),
            (_authority_identifier(authority), False),
        ):
            builder = builder.add_extension(extension, critical=critical)
        certificate = builder.sign(_load_private(self.private_key_pem), hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)


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
    except _UNREADABLE as error:
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


def renew_time(cert_pem: bytes) -> datetime:
    """When a certificate is a day old, or at half its life if that is sooner; no clock is asked."""
    certificate = _load(cert_pem)
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return start + min((end - start) / 2, CLOCK_SKEW + RENEW_AFTER)


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


def is_certificate(pem: bytes) -> bool:
    """Whether this is a certificate in PEM form."""
    return _reads(_load, pem)


def is_private_key(pem: bytes) -> bool:
    """Whether this is a private EC key in PEM form."""
    return _reads(_load_private, pem)


def is_pair(key_pem: bytes, cert_pem: bytes) -> bool:
    """Whether a certificate is one of this private key. Raises InvalidInput when one is none."""
    return bool(_load_private(key_pem).public_key() == _load(cert_pem).public_key())


def private_key_of(key_pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The key in a PEM file. Raises InvalidInput when it is no private EC key."""
    return _load_private(key_pem)


def certified_key(cert_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The key that a certificate is about. Raises InvalidInput when it is none of ours."""
    return _check_public(_load(cert_pem).public_key())


def hosts_of(cert_pem: bytes) -> tuple[list[str], list[str]]:
    """DNS names and IP addresses that a server's certificate was given beside its own two names."""
    extension = x509.SubjectAlternativeName
    names = _load(cert_pem).extensions.get_extension_for_class(extension).value
    hosts = names.get_values_for_type(x509.DNSName)
    addresses = names.get_values_for_type(x509.IPAddress)
    outside = [host for host in hosts if host.rpartition(".")[2] != SERVER_ZONE]
    return outside, [str(address) for address in addresses]


def _reads(load: Callable[[bytes], object], pem: bytes) -> bool:
    try:
        load(pem)
    except InvalidInput:
        return False
    return True


def _refused(why: str) -> Unauthenticated:
    return Unauthenticated(f"The peer's certificate {why}.")


def _load(cert_pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(cert_pem)
    except _UNREADABLE as error:
        raise InvalidInput("This is not a certificate in PEM form.") from error


def _load_peer(cert_pem: bytes) -> x509.Certificate:
    if len(cert_pem) > LARGEST_PEM:
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


def _check_public(key: object) -> ec.EllipticCurvePublicKey:
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(
        key.curve, ec.SECP256R1 | ec.SECP384R1
    ):
        return key
    raise InvalidInput("The key of a certificate is an EC key on P-256 or P-384; make a new one.")


def _load_private(key_pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except _UNREADABLE as error:
        raise InvalidInput("This is not an unencrypted private key in PEM form.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidInput("This private key is not an EC key; make a new one.")
    return key


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _name(common: str) -> x509.Name:
    # X.520 allows a common name 64 characters; it is for people, so a longer one may be cut.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _names(
    cluster: str, principal: Principal, *, server: bool, dns: Iterable[str], ips: Iterable[str]
) -> x509.SubjectAlternativeName:
    identity = spiffe_id(cluster, principal)
    hosts, addresses = list(dict.fromkeys(dns)), list(ips)
    for host in hosts:
        _check_outside(host)
    if server:
        hosts = [principal.kind.server_name, principal.server_name, *hosts]
    elif hosts or addresses:
        raise InvalidInput("Only the certificate of a server has DNS names and IP addresses.")
    try:
        return x509.SubjectAlternativeName(
            [
                x509.UniformResourceIdentifier(identity),
                *(x509.DNSName(host) for host in hosts),
                *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses),
            ]
        )
    except ValueError as error:
        raise InvalidInput(f"A name for the certificate is not acceptable: {error}.") from error


def _check_outside(host: str) -> None:
    """Raise InvalidInput for a name by which the appliance's own servers are known, or for many."""
    labels = host.lower().rstrip(".").split(".")
    if labels[-1] == SERVER_ZONE or "*" in host:
        raise InvalidInput(f"{host!r} is no name for a certificate: give the name of one host.")


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    start: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_identifier(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
