"""Signatures and keyed hashes: Ed25519, HMAC-SHA-256, signed notes for checkpoints of a log.

Rules kept here: verifying returns nothing or raises, and never answers False; a private key shows
itself in no `repr`; a note is accepted only with exactly one signature of the expected name and
key.

Called by the audit log and `appliance.crypto.chain` (checkpoints), `appliance.crypto.keys`, and by
`appliance.crypto.manifest` and `appliance.crypto.statements`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from appliance.core.errors import InvalidInput, Tampered

RAW_SIZE = 32
ROOT_SIZE = 32
NOTE_ALGORITHM = b"\x01"
NOTE_KEY_ID_SIZE = 4
SIGNATURE_PREFIX = "\N{EM DASH} "
MAX_NOTE = 1 << 16


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """HMAC-SHA-256 (RFC 2104), 32 bytes."""
    return hmac.digest(key, data, hashlib.sha256)


def equal(a: bytes, b: bytes) -> bool:
    """Compare two secrets in a time that depends on their length alone."""
    return hmac.compare_digest(a, b)


class VerifyKey:
    """An Ed25519 public key."""

    def __init__(self, raw: bytes) -> None:
        if len(raw) != RAW_SIZE:
            raise InvalidInput(f"An Ed25519 public key has {RAW_SIZE} bytes, not {len(raw)}.")
        self._raw = raw
        self._key = Ed25519PublicKey.from_public_bytes(raw)

    @classmethod
    def from_pem(cls, pem: bytes) -> VerifyKey:
        """Read a SubjectPublicKeyInfo PEM; `InvalidInput` when it holds no Ed25519 key."""
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidInput("This is not a public key in PEM form.") from error
        if not isinstance(key, Ed25519PublicKey):
            raise InvalidInput("This public key is not an Ed25519 key.")
        return cls(key.public_bytes_raw())

    def raw(self) -> bytes:
        """The 32 bytes."""
        return self._raw

    def pem(self) -> bytes:
        """SubjectPublicKeyInfo PEM."""
        return self._key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def verify(self, data: bytes, signature: bytes) -> None:
        """Return when `signature` is this key's over `data`; raise `Tampered` when it is not."""
        try:
            self._key.verify(signature, data)
        except InvalidSignature as error:
            raise Tampered(
                "The signature does not belong to these bytes and this key; do not use them."
            ) from error

    def __eq__(self, other: object) -> bool:
        """Equal keys are equal."""
        return isinstance(other, VerifyKey) and self._raw == other._raw

    def __hash__(self) -> int:
        """As the raw bytes."""
        return hash(self._raw)


class SigningKey:
    """An Ed25519 private key (RFC 8032)."""

    def __init__(self, raw: bytes) -> None:
        if len(raw) != RAW_SIZE:
            raise InvalidInput(f"An Ed25519 private key has {RAW_SIZE} bytes, not {len(raw)}.")
        self._key = Ed25519PrivateKey.from_private_bytes(raw)
        self.verify_key = VerifyKey(self._key.public_key().public_bytes_raw())

    @classmethod
    def create(cls) -> SigningKey:
        """A new random key."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def from_pem(cls, pem: bytes) -> SigningKey:
        """Read an unencrypted PKCS #8 PEM; `InvalidInput` when it holds no Ed25519 key."""
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise InvalidInput("This is not an unencrypted private key in PEM form.") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise InvalidInput("This private key is not an Ed25519 key.")
        return cls(key.private_bytes_raw())

    def raw(self) -> bytes:
        """The 32 secret bytes."""
        return self._key.private_bytes_raw()

    def pem(self) -> bytes:
        """Unencrypted PKCS #8 PEM; a secret."""
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def sign(self, data: bytes) -> bytes:
        """The signature, 64 bytes; the same bytes always give the same signature."""
        return self._key.sign(data)


def sign_note(text: str, name: str, key: SigningKey) -> bytes:
    """A signed note (C2SP signed-note): the text, an empty line, one signature line.

    Args:
        text: lines, the last one ended too; no control characters but the line ends.
        name: of the key; no space and no plus sign.
        key: signs the text.
    """
    _check_note(text, name)
    blob = _key_id(name, key.verify_key) + key.sign(text.encode())
    return f"{text}\n{SIGNATURE_PREFIX}{name} {base64.b64encode(blob).decode()}\n".encode()


def open_note(note: bytes, name: str, key: VerifyKey) -> str:
    """The text of a note that `key` signed under `name`.

    Signatures of other keys are ignored, as the format asks, so that witnesses can add theirs.

    Raises:
        Tampered: it is no note, or there is not exactly one valid signature of this name and key.
    """
    try:
        return _checked_text(note, name, key)
    except (Tampered, InvalidInput, ValueError) as error:
        raise Tampered(f"The signed note of {name} is refused: {error}", object=name) from error


@dataclass(frozen=True)
class SignedNote:
    """A checkpoint of a log (C2SP tlog-checkpoint): which log, how many records, which Merkle root.

    `origin` names the log and the key; `size` counts records; `root` is the RFC 6962 root hash, 32
    bytes.
    """

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        """Refuse a negative size and a root that is no SHA-256 hash."""
        if self.size < 0 or len(self.root) != ROOT_SIZE:
            raise InvalidInput("A checkpoint has a size from 0 on and a root hash of 32 bytes.")

    def text(self) -> str:
        """The three lines that are signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    def sign(self, key: SigningKey) -> bytes:
        """The note, signed under the name `origin`."""
        return sign_note(self.text(), self.origin, key)

    @classmethod
    def open(cls, note: bytes, key: VerifyKey, origin: str) -> SignedNote:
        """Check the signature, then read the checkpoint; `Tampered` when either is wrong."""
        lines = open_note(note, origin, key).split("\n")
        try:
            checkpoint = cls(lines[0], int(lines[1]), base64.b64decode(lines[2], validate=True))
        except (IndexError, ValueError, InvalidInput) as error:
            raise Tampered(f"The note of {origin} is no checkpoint.", object=origin) from error
        # Written again it must be the same text: no second way to write a number, no further line.
        if "\n".join(lines) != checkpoint.text() or checkpoint.origin != origin:
            raise Tampered(f"The note of {origin} is no checkpoint of this log.", object=origin)
        return checkpoint


def _checked_text(note: bytes, name: str, key: VerifyKey) -> str:
    if len(note) > MAX_NOTE:
        raise Tampered("it is too long")
    text, found, signatures = note.decode().rpartition("\n\n")
    text += "\n"
    _check_note(text, name)
    if not found or not signatures.endswith("\n"):
        raise Tampered("it has no signature")
    ours = [
        blob[NOTE_KEY_ID_SIZE:]
        for signer, blob in map(_signature, signatures[:-1].split("\n"))
        if signer == name and blob[:NOTE_KEY_ID_SIZE] == _key_id(name, key)
    ]
    if len(ours) != 1:
        raise Tampered("it has not exactly one signature of the expected key")
    key.verify(text.encode(), ours[0])
    return text


def _check_note(text: str, name: str) -> None:
    if not text.endswith("\n") or any(ord(letter) < ord(" ") and letter != "\n" for letter in text):
        raise InvalidInput(
            "The text of a signed note ends with a line end and has no control characters."
        )
    if not name or "+" in name or any(letter.isspace() for letter in name):
        raise InvalidInput("The name of a signed note's key has no spaces and no plus sign.")


def _signature(line: str) -> tuple[str, bytes]:
    name, space, blob = line.removeprefix(SIGNATURE_PREFIX).partition(" ")
    if not line.startswith(SIGNATURE_PREFIX) or not space:
        raise Tampered("a signature line is malformed")
    return name, base64.b64decode(blob, validate=True)


def _key_id(name: str, key: VerifyKey) -> bytes:
    digest = hashlib.sha256(name.encode() + b"\n" + NOTE_ALGORITHM + key.raw())
    return digest.digest()[:NOTE_KEY_ID_SIZE]
