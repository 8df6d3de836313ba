"""One-time codes: right ones once, in their minute, for their user."""

import base64
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pyotp
import pytest
from sqlalchemy import select, update

from appliance.control.auth.totp import Totp
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.errors import FailedPrecondition, Tampered
from tests.fakes.state import START, add_user

SECRET_BITS = 160


def _totp() -> Totp:
    return Totp(b"f" * 32, b"h" * 32)


def _enrol(state: Database, user: str = "alice") -> pyotp.TOTP:
    add_user(state, user)
    with state.write() as transaction:
        uri = _totp().begin(transaction, user, user, START)
    secret = parse_qs(urlsplit(uri).query)["secret"][0]
    assert len(base64.b32decode(secret)) * 8 == SECRET_BITS
    return pyotp.TOTP(secret)


def _verify(state: Database, code: str, seconds: float = 0, user: str = "alice") -> bool:
    with state.write() as transaction:
        return _totp().verify(transaction, user, code, START + timedelta(seconds=seconds))


@pytest.mark.attack
def test_a_code_works_once(state: Database) -> None:
    code = _enrol(state).at(START)
    assert [_verify(state, code) for _ in range(3)] == [True, False, False]


@pytest.mark.attack
def test_a_code_does_not_work_again_when_the_clock_steps_back(state: Database) -> None:
    device = _enrol(state)
    assert _verify(state, device.at(START + timedelta(seconds=60)), 60)
    assert not _verify(state, device.at(START), 0)
    assert _verify(state, device.at(START + timedelta(seconds=90)), 90)


@pytest.mark.parametrize(
    ("step", "right"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)]
)
def test_one_step_to_either_side(state: Database, step: int, *, right: bool) -> None:
    code = _enrol(state).at(START + timedelta(seconds=30 * step))
    assert _verify(state, code) is right


@pytest.mark.attack
@pytest.mark.parametrize("spell", ["full-width", "superscript", "arabic"])
def test_digits_that_only_look_like_digits_are_refused(state: Database, spell: str) -> None:
    code = _enrol(state).at(START)
    digits = {
        "full-width": "".join(map(chr, range(0xFF10, 0xFF1A))),
        "superscript": "⁰¹²³⁴⁵⁶⁷⁸⁹",
        "arabic": "٠١٢٣٤٥٦٧٨٩",
    }[spell]
    assert not _verify(state, code.translate(str.maketrans("0123456789", digits)))
    assert _verify(state, code)


@pytest.mark.attack
@pytest.mark.parametrize(
    "shape", ["", "{}0", "{} ", " {}", "{}\n", "{:.5}", "0" * 10_000, "-{:.5}"]
)
def test_anything_but_six_digits_is_refused(state: Database, shape: str) -> None:
    code = _enrol(state).at(START)
    assert not _verify(state, shape.format(code))


@pytest.mark.attack
def test_a_secret_moved_to_another_user_does_not_open(state: Database) -> None:
    _enrol(state, "alice")
    device = _enrol(state, "mallory")
    columns = tables.totp.c
    with state.write() as transaction:
        mine = transaction.value(select(columns.sealed_secret).where(columns.user == "mallory"))
        transaction.run(
            update(tables.totp).where(columns.user == "alice").values(sealed_secret=mine)
        )
    with pytest.raises(Tampered):
        _verify(state, device.at(START))


def test_the_secret_is_not_in_the_database_in_clear(state: Database) -> None:
    secret = _enrol(state).secret.encode()
    with state.read() as reading:
        sealed = reading.value(select(tables.totp.c.sealed_secret))
    assert secret not in sealed
    assert base64.b32decode(secret) not in sealed


def test_an_authenticator_that_was_proved_is_not_replaced(state: Database) -> None:
    _enrol(state)
    with state.write() as transaction:
        _totp().begin(transaction, "alice", "alice", START)
        _totp().confirm(transaction, "alice")
    with pytest.raises(FailedPrecondition, match="enter its code"), state.write() as transaction:
        _totp().begin(transaction, "alice", "alice", START)


def test_recovery_codes(state: Database) -> None:
    _enrol(state)
    with state.write() as transaction:
        codes = _totp().confirm(transaction, "alice")
    assert (len(codes), {len(code.replace("-", "")) for code in codes}) == (10, {26})

    def use(code: str, user: str = "alice") -> bool:
        with state.write() as transaction:
            return _totp().use_recovery_code(transaction, user, code)

    assert [use(codes[0]), use(codes[0]), use(codes[1].upper())] == [True, False, True]
    assert not use(codes[2], "bob")
    assert not use("a" * 26)
    with state.write() as transaction:
        new = _totp().confirm(transaction, "alice")
    assert [use(codes[2]), use(new[0])] == [False, True]
