"""Passwords: what is taken, and how they are kept."""

import pytest

from appliance.control.auth.passwords import Passwords
from appliance.core.errors import FailedPrecondition, InvalidInput
from tests.fakes.state import FastPasswords

GOOD = "tall grass by the mill"


def test_the_profile_is_rfc_9106_s_low_memory_one() -> None:
    stored = Passwords(b"p" * 32).hash(GOOD)
    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")


def test_a_password_matches_its_own_hash_alone() -> None:
    passwords = FastPasswords()
    stored = passwords.hash(GOOD)
    assert passwords.verify(stored, GOOD)
    assert not passwords.verify(stored, GOOD + " ")
    assert not passwords.verify(stored, GOOD.upper())
    assert not passwords.verify(None, GOOD)


@pytest.mark.attack
def test_a_hash_is_worth_nothing_without_the_pepper() -> None:
    stored = FastPasswords(b"a" * 32).hash(GOOD)
    assert not FastPasswords(b"b" * 32).verify(stored, GOOD)


def test_two_ways_to_type_one_letter_are_one_password() -> None:
    passwords = FastPasswords()
    assert passwords.verify(passwords.hash("caf\u00e9 by the mill"), "cafe\u0301 by the mill")


def test_a_hash_of_weaker_parameters_is_noticed() -> None:
    assert Passwords(b"p" * 32).is_old(FastPasswords().hash(GOOD))


def test_a_damaged_hash_is_no_wrong_password() -> None:
    with pytest.raises(FailedPrecondition, match="restore the state"):
        FastPasswords().verify("$argon2id$damaged", GOOD)


@pytest.mark.parametrize(
    "good", [GOOD, "x7!kQ2#mP9@w", "пароль для мельницы", "1" * 6 + "abcdefzyx"]
)
def test_what_is_taken(good: str) -> None:
    FastPasswords().check_new(good, "alice")


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("short one", "fewer than 12"),
        ("", "fewer than 12"),
        ("é" * 600, "more than 1024 bytes"),
        ("a" * 11 + "b", "guessed"),
        ("123456789012", "guessed"),
        ("Password1234", "guessed"),
        ("P@ssw0rd!2026", "guessed"),
        ("qwertyuiop123", "guessed"),
        ("changeme-changeme", "guessed"),
        ("correct horse battery staple", "guessed"),
        ("alice-alice-alice", "user's own name"),
        ("ALICEALICE123", "user's own name"),
        ("tall grass\nby the mill", "cannot be typed"),
    ],
)
def test_what_is_refused(bad: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as raised:
        FastPasswords().check_new(bad, "alice")
    assert set(raised.value.fields) == {"password"}
