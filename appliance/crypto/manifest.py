"""The manifest of an artifact: which files it consists of, and the proof that nobody changed that.

RFC 8785 JSON in the clear, `{epoch, extra, files, format, mac, object, project}`; it lists every
file with its sizes and its tag and holds no text of users. `mac` is HMAC-SHA-256, under a key
derived from the data key of the artifact version, over the same document without `mac`.

Rules kept here: no input or output, so that every attack is a unit test; only the canonical form
is read, so there is one manifest per meaning; a manifest is believed after its `mac`, project and
object were checked.

Called by `appliance.crypto.artifacts`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785

from appliance.core.errors import InvalidInput, Tampered
from appliance.crypto.keys import derive_key
from appliance.crypto.signing import equal, hmac_sha256

FORMAT = "sealed-artifact-1"
MAC_PURPOSE = "artifact manifest 1"
MAX_MANIFEST = 64 << 20
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
TAG = re.compile(r"[0-9a-f]{64}")


def check_file_name(file: str) -> str:
    """The name itself.

    Raises:
        InvalidInput: it is no plain name such as `model-00001-of-00002.safetensors`.
    """
    if not FILE_NAME.fullmatch(file):
        raise InvalidInput(
            f"{file!r} cannot name a file of an artifact: use letters, digits, dots, underscores"
            " and hyphens."
        )
    return file


def manifest_digest(manifest: bytes) -> str:
    """SHA-256 of a manifest, hex: what the database keeps to notice an older one."""
    return hashlib.sha256(manifest).hexdigest()


def tampered(project: str, uid: str, why: str) -> Tampered:
    """The error that names an artifact."""
    return Tampered(
        f"The artifact {uid} of project {project} is refused: {why}."
        " Restore it from a backup or make it again.",
        project=project,
        object=uid,
    )


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact: its name, its sizes in bytes, and the tag of this writing of it."""

    file: str
    plain_size: int
    sealed_size: int
    tag: str

    def __post_init__(self) -> None:
        """Refuse what no writer makes."""
        sizes = (self.plain_size, self.sealed_size)
        if any(type(size) is not int or size < 0 for size in sizes) or not TAG.fullmatch(self.tag):
            raise InvalidInput(f"The entry of {self.file!r} has an impossible size or tag.")
        check_file_name(self.file)

    def as_json(self) -> dict[str, str | int]:
        """As it stands in a manifest, and as ranks send it to each other."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FileEntry:
        """Read what `as_json` made; `InvalidInput` when it is something else."""
        names = [field.name for field in dataclasses.fields(cls)]
        if sorted(value) != sorted(names):
            raise InvalidInput(f"An entry of an artifact has the members {', '.join(names)}.")
        return cls(**value)


@dataclass(frozen=True)
class Manifest:
    """What an artifact consists of; `extra` holds numbers and ids, no text of users."""

    project: str
    object: str
    epoch: int
    files: tuple[FileEntry, ...]
    extra: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """As JSON, without the `mac`."""
        return {
            "format": FORMAT,
            "project": self.project,
            "object": self.object,
            "epoch": self.epoch,
            "files": [entry.as_json() for entry in self.files],
            "extra": dict(self.extra),
        }

    def encode(self, key: bytes) -> bytes:
        """The bytes of `manifest.json`; `InvalidInput` when `extra` is not JSON."""
        document = self.document()
        try:
            return rfc8785.dumps({**document, "mac": _mac(document, key)})
        except rfc8785.CanonicalizationError as error:
            raise InvalidInput(f"The extra of {self.object} is not JSON: {error}.") from error

    @classmethod
    def decode(cls, raw: bytes, key: bytes, project: str, uid: str) -> Manifest:
        """Read the manifest of the artifact that the caller expects.

        Raises:
            Tampered: it is not canonical, not authentic, or of another artifact.
        """
        document = _canonical(raw, project, uid)
        mac = document.pop("mac", None)
        if not isinstance(mac, str) or not equal(mac.encode(), _mac(document, key).encode()):
            raise tampered(project, uid, "its manifest was changed, or belongs to another key")
        found = (document["format"], document["project"], document["object"])
        if found != (FORMAT, project, uid):
            raise tampered(project, uid, "its manifest belongs to another artifact")
        files = tuple(map(FileEntry.from_json, document["files"]))
        return cls(project, uid, document["epoch"], files, document["extra"])


def _canonical(raw: bytes, project: str, uid: str) -> dict[str, Any]:
    try:
        document = json.loads(raw) if len(raw) <= MAX_MANIFEST else None
        canonical = isinstance(document, dict) and rfc8785.dumps(document) == raw
    except (ValueError, RecursionError, rfc8785.CanonicalizationError) as error:
        raise tampered(project, uid, "its manifest cannot be read") from error
    if not isinstance(document, dict) or not canonical:
        raise tampered(project, uid, "its manifest is not in canonical form")
    return document


def _mac(document: dict[str, Any], key: bytes) -> str:
    return hmac_sha256(derive_key(key, MAC_PURPOSE), rfc8785.dumps(document)).hex()
