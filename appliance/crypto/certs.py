"""The appliance's own certificate authority, and what it takes to ask it.

The attack: a joiner asks for a certificate of another identity, a CA certificate or one for
servers; a server with a certificate of its own poses as another server of the appliance.
Rules kept here:
* of a certificate request only the public key is used, after its signature proved that the asker
  holds the key;
* identity is exactly one `spiffe://<cluster>/<kind>/<id>` name; common names are for people;
* a server's DNS names say which server it is, `<kind>.appliance` and `<id>.<kind>.appliance`; they
  come from the principal alone, and nobody is given another name under `appliance`;
* a leaf says explicitly that it is no CA and what it is for.

Called by the control plane (`Authority`) and by whoever joins (`new_private_key`, `make_csr`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from appliance.core.errors import InvalidInput
from appliance.core.identity import SERVER_ZONE, Principal, spiffe_id
from appliance.crypto.reading import (
    CLOCK_SKEW,
    MAX_PEM,
    PURPOSES,
    UNREADABLE,
    check_public,
    fingerprint,
    load_private,
)

CA_LIFETIME = timedelta(days=3650)
LEAF_LIFETIME = timedelta(days=10)
"""A long weekend, and a holiday before it, in which nobody is there."""


def new_private_key() -> bytes:
    """A new EC P-256 private key, unencrypted PKCS #8 PEM; a secret."""
    return _private_pem(ec.generate_private_key(ec.SECP256R1()))


def make_csr(key_pem: bytes) -> bytes:
    """A certificate request (PKCS #10 PEM) that proves possession of the key; asks for no more."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(load_private(key_pem), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def public_key_of(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a request whose signature holds; `InvalidInput` otherwise."""
    if len(csr_pem) > MAX_PEM:
        raise InvalidInput("The certificate request is too long.")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key, proved = request.public_key(), request.is_signature_valid
    except UNREADABLE as error:
        raise InvalidInput("This is not a certificate request in PEM form.") from error
    if not proved:
        raise InvalidInput("The certificate request is not signed by the key it names.")
    return check_public(key)


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
        early: timedelta = CLOCK_SKEW,
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
            early: so long before `now` it begins, for clocks that are behind; not before the
                authority's own first moment.
            now: aware time; the clock's when None.

        Raises:
            InvalidInput: the request, a name or the purpose is not acceptable.
        """
        if not (server or client):
            raise InvalidInput("A certificate is for servers, for clients or for both.")
        if lifetime is not None and lifetime <= timedelta(0):
            raise InvalidInput("The lifetime of a certificate is longer than nothing.")
        public = public_key_of(subject) if isinstance(subject, bytes) else check_public(subject)
        now = now or datetime.now(UTC)
        authority = x509.load_pem_x509_certificate(self.certificate_pem)
        start, end = authority.not_valid_before_utc, authority.not_valid_after_utc
        if lifetime is not None:
            behind = now - CLOCK_SKEW
            start = min(behind, max(start, now - early))
            end = min(now + lifetime, end)
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
        certificate = builder.sign(load_private(self.private_key_pem), hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)


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
