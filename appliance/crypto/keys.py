"""The key hierarchy: root key, keyring, project keys, data keys.

The root key lies in a file of mode 0600 and opens the keyring. The keyring's master key wraps one
key per project; a project key wraps one data key per artifact version; a data key seals the files
of that version. Wrapped keys are stored in the state database, so that deleting one row makes the
data unreadable and changing a key above rewraps small values instead of files.

Rules kept here:
* a wrapped key opens only in the context it was wrapped for: moved to another row, project or
  version it is refused;
* the keyring is bound to its cluster and its generation;
* no key appears in a `repr` or in the text of an error; nothing here is ever in argv, environment
  or logs.

Called by the control plane, which alone has a root key; jobs and workers see data keys only.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import rfc8785
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from appliance.core.errors import AlreadyExists, FailedPrecondition, Tampered
from appliance.core.files import read_secret, sync_dir
from appliance.crypto.certs import Authority
from appliance.crypto.floe import KEY_SIZE, check_key
from appliance.crypto.sealed_values import open_field, seal_field
from appliance.crypto.signing import SigningKey

KEYRING_MAGIC = b"SLK1"
GENERATION_SIZE = 8


def new_key() -> bytes:
    """A random 256-bit key."""
    return os.urandom(KEY_SIZE)


def derive_key(key: bytes, purpose: str) -> bytes:
    """A 32-byte key for one purpose from another key (HKDF-Expand-SHA-384, RFC 5869)."""
    check_key(key)
    return HKDFExpand(hashes.SHA384(), KEY_SIZE, f"appliance {purpose}".encode()).derive(key)


def wrap(kek: bytes, key: bytes, context: Mapping[str, str | int]) -> bytes:
    """Seal a key under another key, for one context.

    Args:
        kek: the key above.
        key: the key to store.
        context: everything that names the place: which key above, which object, which version.
    """
    check_key(key)
    return seal_field(key, kek, _wrapping(context))


def unwrap(kek: bytes, blob: bytes, context: Mapping[str, str | int]) -> bytes:
    """Open what `wrap` made; `Tampered` when changed, moved, or wrapped under another key."""
    key = open_field(blob, kek, _wrapping(context))
    check_key(key)
    return key


def _wrapping(context: Mapping[str, str | int]) -> dict[str, str]:
    # One level deeper than the names of a field, so that neither is ever taken for the other.
    return {"wrapped key": rfc8785.dumps(dict(context)).decode()}


@dataclass(frozen=True)
class RootKey:
    """The key that opens the keyring; 32 bytes, kept in a file of its own."""

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse a key of another size."""
        check_key(self.key)

    @classmethod
    def create(cls, path: Path) -> RootKey:
        """Make a root key file of mode 0600 and return its key.

        Raises:
            AlreadyExists: there is a file; it is left alone, since losing a root key loses all
                data.
        """
        root = cls(new_key())
        path = Path(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileExistsError as error:
            raise AlreadyExists(
                f"There is already a root key at {path}. Use it, or choose another data directory.",
                path=path,
            ) from error
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(root.key)
                file.flush()
                os.fsync(file.fileno())
            sync_dir(path.parent)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return root

    @classmethod
    def read(cls, path: Path) -> RootKey:
        """Read a root key file.

        Raises:
            FailedPrecondition: it is missing, open to others, or not a root key.
        """
        data = read_secret(Path(path))
        if len(data) != KEY_SIZE:
            raise FailedPrecondition(
                f"{path} is not a root key: it has {len(data)} bytes instead of {KEY_SIZE}."
                " Put the right file there, or restore it from its backup.",
                path=path,
            )
        return cls(data)


@dataclass(frozen=True)
class Keyring:
    """The keys of one cluster; on disk only as the blob that `seal` returns.

    `master` wraps the project keys; `field_key` seals secret columns; `pepper` goes into password
    hashes; `token_hmac` hashes tokens; `audit_sign` signs checkpoints of the audit log and
    `manifest_sign` manifests; `ca` issues certificates. `generation` counts the keyrings of the
    cluster, so that an older one can be noticed. `rows_signed`: rows of the state have MACs, and a
    state without any is not one of a version before there were some.
    """

    cluster_id: str
    generation: int
    master: bytes = field(repr=False)
    field_key: bytes = field(repr=False)
    pepper: bytes = field(repr=False)
    token_hmac: bytes = field(repr=False)
    audit_sign: SigningKey = field(repr=False)
    manifest_sign: SigningKey = field(repr=False)
    ca: Authority = field(repr=False)
    rows_signed: bool = False

    @classmethod
    def create(cls, root: RootKey, cluster_id: str) -> Keyring:
        """A new keyring of generation 1, proved to open under `root` before anything needs it."""
        keyring = cls(
            cluster_id=cluster_id,
            generation=1,
            master=new_key(),
            field_key=new_key(),
            pepper=new_key(),
            token_hmac=new_key(),
            audit_sign=SigningKey.create(),
            manifest_sign=SigningKey.create(),
            ca=Authority.create(cluster_id),
            rows_signed=True,
        )
        return cls.open(keyring.seal(root), root, cluster_id)

    def seal(self, root: RootKey) -> bytes:
        """The keyring as it is stored."""
        document = {
            "master": _text(self.master),
            "field_key": _text(self.field_key),
            "pepper": _text(self.pepper),
            "token_hmac": _text(self.token_hmac),
            "audit_sign": _text(self.audit_sign.raw()),
            "manifest_sign": _text(self.manifest_sign.raw()),
            "ca_key": _text(self.ca.private_key_pem),
            "ca_certificate": _text(self.ca.certificate_pem),
        }
        if self.rows_signed:
            document["rows_signed"] = _text(b"yes")
        sealed = seal_field(
            rfc8785.dumps(document), root.key, _keyring_aad(self.cluster_id, self.generation)
        )
        return KEYRING_MAGIC + self.generation.to_bytes(GENERATION_SIZE, "big") + sealed

    @classmethod
    def open(cls, blob: bytes, root: RootKey, cluster_id: str) -> Keyring:
        """Open a stored keyring.

        Raises:
            Tampered: it was changed, belongs to another cluster, or was sealed under another root
                key.
        """
        start = len(KEYRING_MAGIC) + GENERATION_SIZE
        if blob[: len(KEYRING_MAGIC)] != KEYRING_MAGIC or len(blob) < start:
            raise Tampered("This is not a keyring. Restore it from a backup.", object="keyring")
        generation = int.from_bytes(blob[len(KEYRING_MAGIC) : start], "big")
        plain = open_field(blob[start:], root.key, _keyring_aad(cluster_id, generation))
        value = {name: base64.b64decode(text) for name, text in json.loads(plain).items()}
        return cls(
            cluster_id=cluster_id,
            generation=generation,
            master=value["master"],
            field_key=value["field_key"],
            pepper=value["pepper"],
            token_hmac=value["token_hmac"],
            audit_sign=SigningKey(value["audit_sign"]),
            manifest_sign=SigningKey(value["manifest_sign"]),
            ca=Authority(cluster_id, value["ca_certificate"], value["ca_key"]),
            rows_signed="rows_signed" in value,
        )

    def row_key(self) -> bytes:
        """The key of the MACs of rows, derived so that older copies of a keyring have it too."""
        return derive_key(self.field_key, "rows of the state")


def _keyring_aad(cluster_id: str, generation: int) -> dict[str, str | int]:
    # As text, because a forged generation may be larger than a canonical JSON number.
    return {"kind": "keyring", "cluster": cluster_id, "generation": str(generation)}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
