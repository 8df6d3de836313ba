"""Root key, keyring and wrapped keys."""

import dataclasses
import itertools
import os
import stat
from pathlib import Path

import pytest

from appliance.core.errors import AlreadyExists, FailedPrecondition, InvalidInput, Tampered
from appliance.crypto.keys import Keyring, RootKey, derive_key, new_key, unwrap, wrap
from appliance.crypto.sealed_values import open_field, seal_field

CONTEXT: dict[str, str | int] = {"project": "research", "object": "4f1c", "version": 3}


@pytest.fixture(scope="module")
def root() -> RootKey:
    return RootKey(new_key())


@pytest.fixture(scope="module")
def keyring(root: RootKey) -> Keyring:
    return Keyring.create(root, "cluster-1")


def secrets_of(keyring: Keyring) -> dict[str, bytes]:
    return {
        "master": keyring.master,
        "field_key": keyring.field_key,
        "pepper": keyring.pepper,
        "token_hmac": keyring.token_hmac,
        "audit_sign": keyring.audit_sign.raw(),
        "manifest_sign": keyring.manifest_sign.raw(),
        "ca": keyring.ca.private_key_pem,
    }


# The root key file


def test_a_root_key_is_read_back_and_private(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    umask = os.umask(0)
    try:
        root = RootKey.create(path)
    finally:
        os.umask(umask)

    assert RootKey.read(path) == root
    assert path.read_bytes() == root.key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_second_root_key_is_refused_and_the_first_kept(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    root = RootKey.create(path)
    with pytest.raises(AlreadyExists):
        RootKey.create(path)

    assert RootKey.read(path) == root


@pytest.mark.attack
def test_a_root_key_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "root.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AlreadyExists):
        RootKey.create(tmp_path / "root.key")

    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_leaves_no_half_root_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        RootKey.create(tmp_path / "root.key")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_file_of_another_size_is_no_root_key(tmp_path: Path, size: int) -> None:
    path = tmp_path / "root.key"
    path.write_bytes(bytes(size))
    path.chmod(0o600)

    with pytest.raises(FailedPrecondition, match="is not a root key"):
        RootKey.read(path)


@pytest.mark.attack
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_root_key_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "root.key"
    RootKey.create(path)
    path.chmod(mode)

    with pytest.raises(FailedPrecondition):
        RootKey.read(path)


def test_a_missing_root_key_is_said(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition):
        RootKey.read(tmp_path / "root.key")


# The keyring


def test_a_keyring_is_opened_with_all_its_keys(root: RootKey, keyring: Keyring) -> None:
    again = Keyring.open(keyring.seal(root), root, "cluster-1")

    assert secrets_of(again) == secrets_of(keyring)
    assert len(set(secrets_of(keyring).values())) == 7
    assert (again.cluster_id, again.generation, again.ca) == ("cluster-1", 1, keyring.ca)


@pytest.mark.attack
def test_a_keyring_of_another_root_or_cluster_is_refused(root: RootKey, keyring: Keyring) -> None:
    blob = keyring.seal(root)
    with pytest.raises(Tampered):
        Keyring.open(blob, RootKey(new_key()), "cluster-1")
    with pytest.raises(Tampered):
        Keyring.open(blob, root, "cluster-2")


@pytest.mark.attack
def test_every_changed_byte_of_a_keyring_is_refused(root: RootKey, keyring: Keyring) -> None:
    blob = keyring.seal(root)
    for index in range(len(blob)):
        changed = bytearray(blob)
        changed[index] ^= 1
        with pytest.raises(Tampered):
            Keyring.open(bytes(changed), root, "cluster-1")
    for length in (0, 4, 11, 12, 13, len(blob) - 1):
        with pytest.raises(Tampered):
            Keyring.open(blob[:length], root, "cluster-1")


@pytest.mark.attack
def test_a_keyring_cannot_change_its_generation(root: RootKey, keyring: Keyring) -> None:
    newer = dataclasses.replace(keyring, generation=2).seal(root)
    old = keyring.seal(root)

    assert Keyring.open(newer, root, "cluster-1").generation == 2
    for forged in (newer[:12] + old[12:], old[:12] + newer[12:], b"SLK1" + b"\xff" * 8 + old[12:]):
        with pytest.raises(Tampered):
            Keyring.open(forged, root, "cluster-1")


@pytest.mark.attack
def test_no_secret_is_shown_or_stored_in_clear(root: RootKey, keyring: Keyring) -> None:
    blob = keyring.seal(root)
    shown = repr(keyring) + repr(root) + str(keyring) + repr(keyring.ca) + repr(keyring.audit_sign)
    for secret in (*secrets_of(keyring).values(), root.key):
        assert secret not in blob
        assert secret.hex() not in shown
        assert repr(secret) not in shown
        assert secret.decode(errors="replace") not in shown


# Wrapped keys


def test_a_wrapped_key_is_unwrapped_in_its_context() -> None:
    kek, key = new_key(), new_key()
    blob = wrap(kek, key, CONTEXT)

    assert unwrap(kek, blob, CONTEXT) == key
    assert key not in blob


@pytest.mark.attack
def test_a_wrapped_key_is_refused_anywhere_else() -> None:
    kek, key = new_key(), new_key()
    contexts: list[dict[str, str | int]] = [
        {"project": project, "object": uid, "version": version}
        for project, uid, version in itertools.product(("a", "b"), ("c", "d"), (1, 2))
    ]
    for written, read in itertools.permutations(contexts, 2):
        with pytest.raises(Tampered):
            unwrap(kek, wrap(kek, key, written), read)
    with pytest.raises(Tampered):
        unwrap(new_key(), wrap(kek, key, CONTEXT), CONTEXT)


@pytest.mark.attack
def test_a_wrapped_key_is_no_field_and_a_field_no_wrapped_key() -> None:
    kek, key = new_key(), new_key()
    with pytest.raises(Tampered):
        open_field(wrap(kek, key, CONTEXT), kek, CONTEXT)
    with pytest.raises(Tampered):
        unwrap(kek, seal_field(key, kek, CONTEXT), CONTEXT)


def test_only_keys_are_wrapped() -> None:
    with pytest.raises(InvalidInput):
        wrap(new_key(), b"short", CONTEXT)
    with pytest.raises(InvalidInput):
        wrap(b"short", new_key(), CONTEXT)


def test_derived_keys_differ_by_purpose_and_key() -> None:
    assert derive_key(bytes(32), "artifact manifest 1").hex() == KNOWN_DERIVED
    assert derive_key(bytes(32), "another") != derive_key(bytes(32), "artifact manifest 1")
    assert derive_key(bytes(31) + b"1", "another") != derive_key(bytes(32), "another")


# HMAC-SHA-384(32 zero bytes, "appliance artifact manifest 1" || 0x01), cut to 32 bytes.
KNOWN_DERIVED = "6aad3906b02a5c672d3ecc613c0033a0ecceb040ab53bef813815126cd1fb188"
