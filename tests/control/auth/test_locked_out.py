"""Guessing wrongly locks nobody out: devices that are known, recovery codes, live sessions."""

from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from appliance.control.auth import attempts, devices
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.errors import Exhausted, Unauthenticated
from tests.fakes.log_in import KEY, PASSWORD, House
from tests.fakes.state import START, FastPasswords, StandingClock, add_user

OTHER = "five geese cross a road"


@pytest.fixture
def house(state: Database, clock: StandingClock) -> House:
    return House(state, clock)


def devices_of(house: House, user: str = "alice") -> int:
    count = select(func.count()).select_from(tables.device)
    with house.state.read() as reading:
        return int(reading.value(count.where(tables.device.c.user == user)))


@pytest.mark.attack
def test_a_hundred_wrong_guesses_shut_the_way_for_unknown_devices_alone(house: House) -> None:
    known = house.enrol().device_token
    house.fail(100)
    for password in (PASSWORD, "wrong password 1"):
        with pytest.raises(Exhausted, match="log in from a device on which you have logged in"):
            house.login(password)
    started = house.login(device_token=known)
    done = house.prove(started.token)
    assert done.device_token == ""
    assert house.identify(done.token).principal.id == "alice"


@pytest.mark.attack
def test_a_success_on_a_known_device_gives_the_guesser_nothing_back(house: House) -> None:
    known = house.enrol().device_token
    house.shut()
    house.clock.forward(30)
    house.prove(house.login(device_token=known).token)
    with pytest.raises(Exhausted):
        house.login()
    assert house.failures() == {"user": 100}


def test_a_success_on_an_unknown_device_clears_their_counter_and_no_other(house: House) -> None:
    known = house.enrol().device_token
    house.fail(3)
    house.fail(2, device_token=known)
    assert house.failures() == {"user": 3, "device": 2}
    house.prove(house.login().token)
    assert house.failures() == {"device": 2}


@pytest.mark.attack
def test_a_known_device_is_no_way_to_guess_without_end(house: House) -> None:
    known = house.enrol().device_token
    house.fail(100, device_token=known)
    with pytest.raises(Exhausted):
        house.login(device_token=known)
    house.login()


@pytest.mark.attack
def test_a_known_device_still_needs_password_and_second_factor(house: House) -> None:
    known = house.enrol().device_token
    with pytest.raises(Unauthenticated, match="user or the password is wrong"):
        house.login("wrong password 1", device_token=known)
    started = house.login(device_token=known)
    with pytest.raises(Unauthenticated):
        house.identify(started.token)
    with pytest.raises(Unauthenticated):
        house.identify(known)


@pytest.mark.attack
def test_another_user_s_device_is_unknown(house: House) -> None:
    add_user(house.state, "bob", FastPasswords().hash(PASSWORD))
    known = house.enrol().device_token
    house.shut("user:bob")
    with pytest.raises(Exhausted):
        house.login(user="bob", device_token=known)


@pytest.mark.attack
def test_what_is_no_device_token_is_an_unknown_device(house: House) -> None:
    done = house.enrol()
    house.shut()
    wrong = done.device_token.replace("dev_", "dev_0000")
    for text in ("", "x", wrong, done.token, done.device_token[:-1], "a" * 10_000):
        with pytest.raises(Exhausted):
            house.login(device_token=text)


def test_a_recovery_code_opens_what_was_shut_and_is_used_by_the_second_step(house: House) -> None:
    codes = house.enrol().recovery_codes
    house.shut()
    with pytest.raises(Unauthenticated):
        house.login("wrong password 1", recovery_code=codes[0])
    started = house.login(recovery_code=codes[0].upper().replace("-", ""))
    done = house.log_in.verify_totp(started.token, recovery_code=codes[0])
    assert done.step == "COMPLETE"
    assert done.device_token
    with pytest.raises(Exhausted):
        house.login(recovery_code=codes[0])


@pytest.mark.attack
def test_a_stolen_recovery_code_is_no_way_to_guess_passwords(house: House) -> None:
    codes = house.enrol().recovery_codes
    house.fail(100, recovery_code=codes[0])
    with pytest.raises(Exhausted):
        house.login(recovery_code=codes[1])
    house.login()


@pytest.mark.attack
def test_a_live_session_renews_its_second_factor_whatever_was_guessed(house: House) -> None:
    token = house.enrol().token
    house.shut()
    house.clock.forward(60)
    done = house.prove(token)
    assert house.identify(done.token).mfa_time == house.clock()
    with pytest.raises(Exhausted):
        house.login()


@pytest.mark.attack
def test_what_is_shut_answers_alike_for_a_name_that_nobody_has(house: House) -> None:
    house.fail(100)
    house.fail(100, user="nobody")
    said = []
    for user in ("alice", "nobody"):
        with pytest.raises(Exhausted) as refused:
            house.login(user=user, device_token="x", recovery_code="y")
        said.append((refused.value.message, refused.value.retry_after))
    assert said[0] == said[1]


def test_a_device_is_forgotten_after_ninety_days_without_a_log_in(house: House) -> None:
    known = house.enrol().device_token
    house.clock.forward(89 * 86400)
    house.prove(house.login(device_token=known).token)
    house.clock.forward(89 * 86400)
    house.login(device_token=known)
    house.clock.forward(86400)
    house.shut()
    with pytest.raises(Exhausted):
        house.login(device_token=known)


@pytest.mark.attack
def test_at_most_ten_devices_are_known_the_ones_used_last(house: House) -> None:
    first = house.enrol().device_token
    for _ in range(9):
        house.clock.forward(60)
        house.prove(house.login().token)
    house.clock.forward(60)
    house.prove(house.login(device_token=first).token)
    house.clock.forward(60)
    house.fail(1, device_token=first)
    house.prove(house.login().token)
    assert devices_of(house) == devices.MOST
    house.shut()
    house.login(device_token=first)
    assert house.failures() == {"device": 2, "user": 100}


def test_a_new_password_forgets_every_device_and_its_counter(house: House) -> None:
    done = house.enrol()
    house.fail(1, device_token=done.device_token)
    with house.state.write() as transaction:
        # The wrong try moved the clock on by more than the session's idle time.
        transaction.run(update(tables.session).values(seen_time=house.clock()))
    changed = house.change(house.identify(done.token).credential, PASSWORD, OTHER)
    assert (devices_of(house), house.failures()) == (1, {})
    house.shut()
    with pytest.raises(Exhausted):
        house.login(OTHER, device_token=done.device_token)
    house.login(OTHER, device_token=changed.device_token)


def test_a_device_from_a_clock_that_was_ahead_is_unknown_and_goes_first(house: House) -> None:
    house.enrol()
    house.clock.forward(365 * 86400)
    ahead = house.prove(house.login().token).device_token
    house.clock.now = START + timedelta(hours=1)
    house.shut()
    with pytest.raises(Exhausted):
        house.login(device_token=ahead)
    with house.state.write() as transaction:
        attempts.clear_account(transaction, "alice")
        for _ in range(9):
            devices.remember(transaction, "alice", KEY, house.clock())
    times = select(func.max(tables.device.c.seen_time))
    with house.state.read() as reading:
        assert reading.value(times) == house.clock()
