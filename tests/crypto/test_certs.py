"""The authority issues what it decides, and a peer is who a flawless certificate says."""

import datetime as dt
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.core.errors import InvalidInput, Unauthenticated
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import Authority, make_csr, new_private_key
from appliance.crypto.reading import (
    CLOCK_SKEW,
    not_after,
    peer_identity,
    renew_time,
    serial_of,
)

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
NODE = Principal(PrincipalKind.NODE, "gpu-1")
CLUSTER = "cluster-1"
NODE_URI = f"spiffe://{CLUSTER}/node/gpu-1"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create(CLUSTER, now=NOW)


@pytest.fixture(scope="module")
def key() -> bytes:
    return new_private_key()


def read(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def client(authority: Authority, key: bytes, *, now: datetime = NOW) -> bytes:
    return authority.issue(make_csr(key), NODE, server=False, client=True, now=now)


# What is issued


def test_the_authority_signs_leaves_and_nothing_else(authority: Authority) -> None:
    certificate = read(authority.certificate_pem)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)

    assert (constraints.value.ca, constraints.value.path_length, constraints.critical) == (
        True,
        0,
        True,
    )
    assert (usage.value.key_cert_sign, usage.value.digital_signature) == (True, False)
    assert authority.fingerprint() == certificate.fingerprint(hashes.SHA256()).hex()
    assert Authority.create(CLUSTER).fingerprint() != authority.fingerprint()


def test_a_client_certificate_says_who_and_what_for(authority: Authority, key: bytes) -> None:
    pem = client(authority, key)
    certificate = read(pem)
    extensions = certificate.extensions

    assert peer_identity(pem, CLUSTER, NOW, need="client", ca_pem=authority.certificate_pem) == NODE
    assert [entry.value for entry in certificate.subject] == ["node:gpu-1"]
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == [
        x509.UniformResourceIdentifier(NODE_URI)
    ]
    assert (not_after(pem), int(serial_of(pem), 16)) == (
        NOW + timedelta(days=10),
        certificate.serial_number,
    )


def test_a_server_certificate_says_which_server_it_is(authority: Authority, key: bytes) -> None:
    pem = authority.issue(
        make_csr(key),
        NODE,
        server=True,
        client=True,
        dns=["gpu-1.lab", "appliance.lab"],
        ips=["10.0.0.7", "::1"],
        lifetime=timedelta(hours=1),
        now=NOW,
    )
    names = read(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    assert names.get_values_for_type(x509.DNSName) == [
        "node.appliance",
        f"{NODE.id}.node.appliance",
        "gpu-1.lab",
        "appliance.lab",
    ]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7", "::1"]
    purposes: tuple[Literal["client", "server"], ...] = ("client", "server")
    assert [peer_identity(pem, CLUSTER, NOW, need=purpose) for purpose in purposes] == [NODE, NODE]
    assert not_after(pem) == NOW + timedelta(hours=1)


@pytest.mark.attack
@pytest.mark.parametrize(
    "name",
    [
        "control.appliance",
        "Control.Appliance",
        "control.appliance.",
        "control.appliance..",
        "appliance",
        "a.b.gateway.appliance",
        "*.appliance",
        "*",
        "*.lab",
    ],
)
def test_nobody_is_given_the_name_of_another_server(
    authority: Authority, key: bytes, name: str
) -> None:
    with pytest.raises(InvalidInput, match="no name for a certificate"):
        authority.issue(make_csr(key), NODE, server=True, client=False, dns=["gpu-1.lab", name])


def test_a_public_key_will_do_and_no_leaf_outlives_the_authority(authority: Authority) -> None:
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    pem = authority.issue(
        public, NODE, server=False, client=True, lifetime=timedelta(days=9000), now=NOW
    )

    assert not_after(pem) == not_after(authority.certificate_pem)


def test_what_lasts_as_long_as_the_authority_begins_with_it(
    authority: Authority, key: bytes
) -> None:
    """A clock that is ahead when it is issued leaves no certificate of the future."""
    ahead = NOW + timedelta(days=365)
    pem = authority.issue(make_csr(key), NODE, server=True, client=False, lifetime=None, now=ahead)

    for end in ("not_valid_before_utc", "not_valid_after_utc"):
        assert getattr(read(pem), end) == getattr(read(authority.certificate_pem), end)


@pytest.mark.parametrize(
    ("lifetime", "renewed"),
    [
        (timedelta(days=10), timedelta(days=1)),
        (timedelta(hours=24), (timedelta(hours=24) - CLOCK_SKEW) / 2),
    ],
)
def test_when_to_renew_is_read_from_the_certificate_alone(
    authority: Authority, key: bytes, lifetime: timedelta, renewed: timedelta
) -> None:
    pem = authority.issue(
        make_csr(key), NODE, server=False, client=True, lifetime=lifetime, now=NOW
    )

    assert renew_time(pem) == NOW + renewed


@pytest.mark.attack
def test_nothing_of_a_request_but_its_key_is_believed(authority: Authority) -> None:
    wanted: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=True, path_length=3), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), True),
        (
            x509.SubjectAlternativeName(
                [
                    x509.UniformResourceIdentifier(f"spiffe://{CLUSTER}/user/admin"),
                    x509.DNSName("control.appliance"),
                ]
            ),
            False,
        ),
    ]
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "user:admin")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    for extension, critical in wanted:
        builder = builder.add_extension(extension, critical=critical)
    csr = builder.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    greedy = read(authority.issue(csr, NODE, server=False, client=True, now=NOW))
    modest = read(authority.issue(private.public_key(), NODE, server=False, client=True, now=NOW))

    assert greedy.subject == modest.subject
    assert list(greedy.extensions) == list(modest.extensions)


@pytest.mark.attack
def test_a_request_must_be_signed_by_its_own_key(authority: Authority, key: bytes) -> None:
    der = bytearray(x509.load_pem_x509_csr(make_csr(key)).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)

    with pytest.raises(InvalidInput, match="not signed by the key"):
        authority.issue(forged, NODE, server=False, client=True)


@pytest.mark.parametrize("csr", [b"", b"text", b"x" * 100_000, new_private_key()])
def test_what_is_no_request_is_refused(authority: Authority, csr: bytes) -> None:
    with pytest.raises(InvalidInput):
        authority.issue(csr, NODE, server=False, client=True)


def test_weak_and_unknown_keys_are_refused(authority: Authority) -> None:
    rsa_key = rsa.generate_private_key(65537, 2048)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.sign(rsa_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    for subject in (csr, ec.generate_private_key(ec.SECP192R1()).public_key()):
        with pytest.raises(InvalidInput, match="P-256"):
            authority.issue(subject, NODE, server=False, client=True)


def test_impossible_wishes_are_refused(authority: Authority, key: bytes) -> None:
    csr = make_csr(key)
    with pytest.raises(InvalidInput):
        authority.issue(csr, NODE, server=False, client=False)
    with pytest.raises(InvalidInput):
        authority.issue(csr, NODE, server=False, client=True, lifetime=timedelta(0))
    with pytest.raises(InvalidInput):
        authority.issue(csr, NODE, server=False, client=True, dns=["gpu-1"])
    with pytest.raises(InvalidInput):
        authority.issue(csr, NODE, server=True, client=True, ips=["10.0.0.300"])
    with pytest.raises(InvalidInput):
        authority.issue(csr, NODE, server=True, client=True, dns=["gpü-1"])
    with pytest.raises(InvalidInput):
        authority.issue(csr, Principal(PrincipalKind.ANONYMOUS, ""), server=False, client=True)
    with pytest.raises(InvalidInput):
        make_csr(b"text")


def test_serial_numbers_differ(authority: Authority, key: bytes) -> None:
    assert len({serial_of(client(authority, key)) for _ in range(20)}) == 20


@pytest.mark.attack
def test_the_key_of_the_authority_is_not_shown(authority: Authority) -> None:
    assert "PRIVATE KEY" not in repr(authority)


# Who a peer is


def forge(  # a certificate with one thing wrong, or nothing
    authority: Authority,
    *,
    uris: Iterable[str] = (NODE_URI,),
    ca: bool | None = False,
    purposes: Iterable[x509.ObjectIdentifier] | None = (ExtendedKeyUsageOID.CLIENT_AUTH,),
    names: bool = True,
    start: timedelta = timedelta(minutes=-5),
    end: timedelta = timedelta(hours=1),
) -> bytes:
    issuer = read(authority.certificate_pem)
    signer = serialization.load_pem_private_key(authority.private_key_pem, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "user:admin")]))
        .issuer_name(issuer.subject)
        .public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + start)
        .not_valid_after(NOW + end)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
    if purposes is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if names:
        sans = [x509.DNSName("gpu-1"), *map(x509.UniformResourceIdentifier, uris)]
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_a_flawless_certificate_is_accepted(authority: Authority) -> None:
    pem = forge(authority)

    assert peer_identity(pem, CLUSTER, NOW, need="client", ca_pem=authority.certificate_pem) == NODE


@pytest.mark.attack
@pytest.mark.parametrize(
    ("flaw", "why"),
    [
        ({"end": timedelta(0)}, "not valid at this time"),
        ({"end": timedelta(seconds=-1)}, "not valid at this time"),
        ({"start": timedelta(seconds=1)}, "not valid at this time"),
        ({"ca": True}, "of an authority"),
        ({"ca": None}, "does not say what it is for"),
        ({"purposes": None}, "does not say what it is for"),
        ({"names": False}, "does not say what it is for"),
        ({"purposes": [ExtendedKeyUsageOID.SERVER_AUTH]}, "not issued for a client"),
        ({"purposes": [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]}, "not issued for a client"),
        ({"purposes": [ExtendedKeyUsageOID.CODE_SIGNING]}, "not issued for a client"),
        ({"uris": []}, "exactly one identity"),
        ({"uris": [NODE_URI, f"spiffe://{CLUSTER}/user/admin"]}, "exactly one identity"),
        ({"uris": ["spiffe://cluster-2/node/gpu-1"]}, "no identity of this cluster"),
        ({"uris": [f"spiffe://{CLUSTER}/admin/gpu-1"]}, "no identity of this cluster"),
        ({"uris": [f"spiffe://{CLUSTER}/node/"]}, "no identity of this cluster"),
        ({"uris": [f"spiffe://{CLUSTER}/node/a/b"]}, "no identity of this cluster"),
        ({"uris": [f"https://{CLUSTER}/node/gpu-1"]}, "no identity of this cluster"),
        ({"uris": [f"spiffe://{CLUSTER}.example/node/gpu-1"]}, "no identity of this cluster"),
    ],
)
def test_one_flaw_is_enough(authority: Authority, flaw: dict[str, object], why: str) -> None:
    pem = forge(authority, **flaw)  # type: ignore[arg-type]  # one keyword each, typed above
    with pytest.raises(Unauthenticated, match=why):
        peer_identity(pem, CLUSTER, NOW, need="client")


@pytest.mark.attack
def test_a_client_is_no_server(authority: Authority, key: bytes) -> None:
    with pytest.raises(Unauthenticated, match="not issued for a server"):
        peer_identity(client(authority, key), CLUSTER, NOW, need="server")


@pytest.mark.attack
def test_a_certificate_with_much_behind_it_is_refused_unread(
    authority: Authority, key: bytes
) -> None:
    pem = client(authority, key)
    room = b"\n" * ((1 << 16) - len(pem))
    assert peer_identity(pem + room, CLUSTER, NOW, need="client") == NODE
    with pytest.raises(Unauthenticated, match="is too long"):
        peer_identity(pem + room + b"\n", CLUSTER, NOW, need="client")


@pytest.mark.attack
def test_the_authority_itself_is_no_peer(authority: Authority) -> None:
    with pytest.raises(Unauthenticated):
        peer_identity(authority.certificate_pem, CLUSTER, NOW, need="client")


@pytest.mark.attack
def test_a_certificate_of_another_authority_is_refused(authority: Authority, key: bytes) -> None:
    impostor = Authority.create(CLUSTER, now=NOW)
    pem = client(impostor, key)

    with pytest.raises(Unauthenticated, match="another authority"):
        peer_identity(pem, CLUSTER, NOW, need="client", ca_pem=authority.certificate_pem)


@pytest.mark.attack
@pytest.mark.parametrize("pem", [b"", b"text", b"x" * 100_000, new_private_key()])
def test_what_is_no_certificate_is_nobody(pem: bytes) -> None:
    with pytest.raises(Unauthenticated):
        peer_identity(pem, CLUSTER, NOW, need="client")


@pytest.mark.attack
def test_a_certificate_ends_while_a_connection_lives(authority: Authority, key: bytes) -> None:
    pem = client(authority, key)
    end = not_after(pem)

    assert peer_identity(pem, CLUSTER, end - dt.timedelta(seconds=1), need="client") == NODE
    with pytest.raises(Unauthenticated):
        peer_identity(pem, CLUSTER, end, need="client")


# The same certificates in a TLS handshake of OpenSSL


def context(
    folder: Path, authority: Authority, *, purpose: str, signer: Authority | None = None
) -> ssl.SSLContext:
    """One side of a handshake, with a fresh certificate for `purpose` issued by `signer`."""
    key = new_private_key()
    issued = (signer or authority).issue(
        make_csr(key), NODE, server=purpose == "server", client=purpose == "client"
    )
    pair = folder / f"{serial_of(issued)}.pem"
    pair.write_bytes(key + issued)
    side = ssl.PROTOCOL_TLS_SERVER if purpose == "server" else ssl.PROTOCOL_TLS_CLIENT
    built = ssl.SSLContext(side)
    built.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    built.load_verify_locations(cadata=authority.certificate_pem.decode())
    built.verify_mode = ssl.CERT_REQUIRED
    built.load_cert_chain(pair)
    return built


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "node.appliance") -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    done = 0
    while done < 2:
        done = 0
        for side in sides:
            try:
                side.do_handshake()
                done += 1
            except ssl.SSLWantReadError:
                continue


def test_our_certificates_agree_in_a_handshake(authority: Authority, tmp_path: Path) -> None:
    real = Authority.create(CLUSTER)

    handshake(context(tmp_path, real, purpose="server"), context(tmp_path, real, purpose="client"))


@pytest.mark.attack
def test_a_handshake_with_a_wrong_name_or_authority_fails(tmp_path: Path) -> None:
    real, impostor = Authority.create(CLUSTER), Authority.create(CLUSTER)
    server = context(tmp_path, real, purpose="server")
    client_side = context(tmp_path, real, purpose="client")
    false_server = context(tmp_path, real, purpose="server", signer=impostor)
    false_client = context(tmp_path, real, purpose="client", signer=impostor)

    for left, right, name in (
        (server, client_side, "elsewhere"),
        (false_server, client_side, "node.appliance"),
        (server, false_client, "node.appliance"),
        (server, client_side, "control.appliance"),
        (server, client_side, "appliance"),
    ):
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(left, right, name)
