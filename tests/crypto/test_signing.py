"""Signatures, keyed hashes and signed notes, against published answers."""

import base64

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from appliance.core.errors import InvalidInput, Tampered
from appliance.crypto.certs import new_private_key
from appliance.crypto.signing import (
    MAX_NOTE,
    SignedNote,
    SigningKey,
    VerifyKey,
    equal,
    hmac_sha256,
    open_note,
    sign_note,
)

ROOT = base64.b64encode(bytes(32)).decode()
# RFC 8032, 7.1, tests 1 and 3.
RFC8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e3970"
            "1cf9b46bd25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760"
            "984dc6594a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]
# The example of Go's golang.org/x/mod/sumdb/note, whose format C2SP signed-note describes.
NOTE_NAME = "PeterNeumann"
NOTE_SEED = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
NOTE_KEY = "ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NOTE_TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
NOTE = (
    NOTE_TEXT + "\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXg"
    "KvqfqdngotpRZb6KE6RyyBwJnAM=\n"
).encode()


@pytest.fixture
def signer() -> SigningKey:
    return SigningKey(bytes(range(32)))


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC8032)
def test_ed25519_known_answers(seed: str, public: str, message: str, signature: str) -> None:
    key = SigningKey(bytes.fromhex(seed))

    assert key.verify_key.raw().hex() == public
    assert key.sign(bytes.fromhex(message)).hex() == signature
    VerifyKey(bytes.fromhex(public)).verify(bytes.fromhex(message), bytes.fromhex(signature))


def test_hmac_known_answer() -> None:
    # RFC 4231, 4.3.
    expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"

    assert hmac_sha256(b"Jefe", b"what do ya want for nothing?").hex() == expected


def test_equal_compares() -> None:
    assert equal(b"same", b"same")
    assert not equal(b"same", b"sane")
    assert not equal(b"same", b"sam")


@pytest.mark.attack
def test_every_changed_bit_is_refused(signer: SigningKey) -> None:
    signature = signer.sign(b"data")
    for bit in range(8 * len(signature)):
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Tampered):
            signer.verify_key.verify(b"data", bytes(changed))
    for data, sig in ((b"date", signature), (b"", signature), (b"data", b""), (b"data", bytes(64))):
        with pytest.raises(Tampered):
            signer.verify_key.verify(data, sig)
    with pytest.raises(Tampered):
        SigningKey.create().verify_key.verify(b"data", signature)


def test_keys_go_out_and_come_in(signer: SigningKey) -> None:
    public = signer.verify_key

    assert SigningKey(signer.raw()).verify_key == public
    assert SigningKey.from_pem(signer.pem()).raw() == signer.raw()
    assert VerifyKey.from_pem(public.pem()) == public
    assert len({public, VerifyKey(public.raw())}) == 1
    assert SigningKey.create().verify_key != public


@pytest.mark.parametrize("pem", [b"", b"text", new_private_key()])
def test_other_keys_are_refused(pem: bytes, signer: SigningKey) -> None:
    for read in (SigningKey.from_pem, VerifyKey.from_pem):
        with pytest.raises(InvalidInput):
            read(pem)
    with pytest.raises(InvalidInput):
        SigningKey.from_pem(signer.verify_key.pem())
    with pytest.raises(InvalidInput):
        VerifyKey.from_pem(signer.pem())
    for size in (0, 31, 33):
        with pytest.raises(InvalidInput):
            SigningKey(bytes(size))
        with pytest.raises(InvalidInput):
            VerifyKey(bytes(size))


@pytest.mark.attack
def test_a_key_for_another_use_of_the_same_curve_is_refused() -> None:
    """Its 32 bytes would pass for a key that signs."""
    other = X25519PrivateKey.generate()
    private = other.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = other.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(InvalidInput, match="not an Ed25519 key"):
        VerifyKey.from_pem(public)
    with pytest.raises(InvalidInput, match="not an Ed25519 key"):
        SigningKey.from_pem(private)


@pytest.mark.attack
def test_no_private_key_in_a_repr(signer: SigningKey) -> None:
    assert signer.raw().hex() not in repr(signer) + str(vars(signer))


# Signed notes


def test_a_note_has_the_published_form() -> None:
    key = SigningKey(base64.b64decode(NOTE_SEED)[1:])

    assert base64.b64decode(NOTE_KEY)[1:] == key.verify_key.raw()
    assert sign_note(NOTE_TEXT, NOTE_NAME, key) == NOTE
    assert open_note(NOTE, NOTE_NAME, key.verify_key) == NOTE_TEXT


def test_signatures_of_others_are_ignored(signer: SigningKey) -> None:
    witness = sign_note("text\n", "witness", SigningKey.create()).split(b"\n\n")[1]
    note = sign_note("text\n", "log", signer) + witness

    assert open_note(note, "log", signer.verify_key) == "text\n"


def test_a_signature_of_another_key_under_the_same_name_is_ignored(signer: SigningKey) -> None:
    older = sign_note("text\n", "log", SigningKey.create()).split(b"\n\n")[1]
    note = sign_note("text\n", "log", signer) + older

    assert open_note(note, "log", signer.verify_key) == "text\n"


@pytest.mark.attack
def test_a_long_note_is_refused_though_it_is_signed(signer: SigningKey) -> None:
    room = MAX_NOTE - len(sign_note("\n", "log", signer))
    longest = "x" * room + "\n"

    assert open_note(sign_note(longest, "log", signer), "log", signer.verify_key) == longest
    with pytest.raises(Tampered, match="too long"):
        open_note(sign_note("x" + longest, "log", signer), "log", signer.verify_key)


@pytest.mark.attack
def test_a_signature_counts_only_under_its_name_and_key(signer: SigningKey) -> None:
    note = sign_note("text\n", "log", signer)
    with pytest.raises(Tampered):
        open_note(note, "other", signer.verify_key)
    with pytest.raises(Tampered):
        open_note(note, "log", SigningKey.create().verify_key)
    with pytest.raises(Tampered):
        open_note(note.replace(b" log ", b" other "), "log", signer.verify_key)
    with pytest.raises(Tampered):
        open_note(note + note.split(b"\n\n")[1], "log", signer.verify_key)


@pytest.mark.attack
@pytest.mark.parametrize(
    "change",
    [
        lambda note: note[:-1],
        lambda note: note[:-1] + b"x",
        lambda note: note + b"\n",
        lambda note: note + b"text",
        lambda note: note.replace(b"text", b"test"),
        lambda note: note.replace(b"\n\n", b"\n"),
        lambda note: note.replace(b"\n\n", b"\n\x01\n\n"),
        lambda note: note.replace("—".encode(), b"-"),
        lambda note: note.replace("— ".encode(), b""),
        lambda note: note.split(b"\n\n")[0],
        lambda note: b"",
        lambda note: b"\n\n",
        lambda note: b"\xff" + note,
        lambda note: note + b"\x41" * (1 << 16),
    ],
)
def test_every_malformed_note_is_refused(change: object, signer: SigningKey) -> None:
    note = sign_note("text\n", "log", signer)
    assert callable(change)
    with pytest.raises(Tampered):
        open_note(change(note), "log", signer.verify_key)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("no end", "log"),
        ("tab\t\n", "log"),
        ("a\r\n", "log"),
        ("a\n", "a b"),
        ("a\n", "a+b"),
        ("a\n", ""),
    ],
)
def test_a_note_that_nobody_could_open_is_not_made(
    text: str, name: str, signer: SigningKey
) -> None:
    with pytest.raises(InvalidInput):
        sign_note(text, name, signer)


def test_a_checkpoint_is_read_back(signer: SigningKey) -> None:
    checkpoint = SignedNote("cluster-1/audit", 4711, bytes(range(32)))

    note = checkpoint.sign(signer)

    assert SignedNote.open(note, signer.verify_key, "cluster-1/audit") == checkpoint
    assert note.decode().split("\n")[:3] == [
        "cluster-1/audit",
        "4711",
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    ]


@pytest.mark.attack
@pytest.mark.parametrize(
    "text",
    [
        "log\n",
        "log\n1\n",
        "log\nx\nAAAA\n",
        f"log\n 1\n{ROOT}\n",
        f"log\n1_0\n{ROOT}\n",
        "log\n1\nAAA\n",
        "log\n1\nAAAA\n",
        f"gol\n1\n{ROOT}\n",
        f"log\n-1\n{ROOT}\n",
        f"log\n01\n{ROOT}\n",
        f"log\n1\n{ROOT}\nmore\n",
        f"log\n1\n {ROOT}\n",
    ],
)
def test_a_signed_note_that_is_no_checkpoint_is_refused(text: str, signer: SigningKey) -> None:
    with pytest.raises(Tampered):
        SignedNote.open(sign_note(text, "log", signer), signer.verify_key, "log")
