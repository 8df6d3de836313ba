"""Changing one's own password: by choice, and because somebody else chose it."""

from datetime import timedelta

import pytest
from sqlalchemy import update

from appliance.control.auth.credentials import fresh_mfa
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.errors import (
    FailedPrecondition,
    InvalidInput,
    PasswordChangeRequired,
    Unauthenticated,
)
from tests.fakes.log_in import PASSWORD, House
from tests.fakes.state import StandingClock

OTHER = "five geese cross a road"


@pytest.fixture
def house(state: Database, clock: StandingClock) -> House:
    return House(state, clock)


def test_a_change_ends_every_other_session_and_the_token_of_this_one(house: House) -> None:
    first = house.enrol()
    house.clock.forward(60)
    second = house.prove(house.login().token)
    done = house.change(house.identify(first.token).credential, PASSWORD, OTHER)
    for token in (first.token, second.token):
        with pytest.raises(Unauthenticated):
            house.identify(token)
    proof = house.identify(done.token)
    assert (done.expire_time, proof.expire_time) == (first.expire_time, first.expire_time)
    house.clock.forward(60)
    with pytest.raises(Unauthenticated):
        house.login(PASSWORD)
    assert house.prove(house.login(OTHER).token).step == "COMPLETE"


@pytest.mark.attack
def test_a_stolen_session_is_no_way_to_guess_the_password(house: House) -> None:
    session = house.identify(house.enrol().token).credential
    for _ in range(4):
        with pytest.raises(InvalidInput, match="not your present password"):
            house.change(session, "wrong password 1", OTHER)
    with pytest.raises(Unauthenticated, match="this session has ended"):
        house.change(session, "wrong password 1", OTHER)
    with pytest.raises(Unauthenticated):
        house.change(session, PASSWORD, OTHER)
    house.clock.forward(60)
    house.login(PASSWORD)


@pytest.mark.attack
def test_tries_at_once_are_counted_before_they_are_verified(house: House) -> None:
    session = house.identify(house.enrol().token).credential
    begun = [house.log_in.begin_change(session) for _ in range(5)]
    with pytest.raises(Unauthenticated, match="this session has ended"):
        house.log_in.begin_change(session)
    with pytest.raises(Unauthenticated):
        house.log_in.finish_change(begun[0], house.passwords.hash(OTHER), "")


def test_a_try_whose_turn_did_not_come_is_given_back(house: House) -> None:
    session = house.identify(house.enrol().token).credential
    for _ in range(8):
        house.log_in.release(house.log_in.begin_change(session))
    house.change(session, PASSWORD, OTHER)


@pytest.mark.attack
def test_a_password_that_was_reset_meanwhile_is_not_overwritten(house: House) -> None:
    begun = house.log_in.begin_change(house.identify(house.enrol().token).credential)
    with house.state.write() as transaction:
        transaction.run(update(tables.user).values(password_hash=house.passwords.hash("reset")))
    with pytest.raises(FailedPrecondition, match="log in again"):
        house.log_in.finish_change(begun, house.passwords.hash(OTHER), "")


@pytest.mark.attack
def test_a_log_in_that_a_reset_overtook_is_refused(house: House) -> None:
    begun = house.log_in.begin("alice")
    with house.state.write() as transaction:
        transaction.run(update(tables.user).values(password_hash=house.passwords.hash("reset")))
    with pytest.raises(Unauthenticated):
        house.log_in.finish(begun, "", right=True)


@pytest.mark.attack
def test_a_password_of_somebody_else_s_choice_lets_in_to_replace_it_and_no_further(
    house: House,
) -> None:
    with house.state.write() as transaction:
        transaction.run(update(tables.user).values(must_change=True))
    first = house.enrol()
    assert (first.step, len(first.recovery_codes)) == ("CHANGE_PASSWORD", 10)
    assert first.expire_time == house.clock() + timedelta(minutes=10)
    with pytest.raises(PasswordChangeRequired, match="appliance password change"):
        house.identify(first.token)
    assert house.credentials.live() == []
    proof = house.credentials.identify(f"Bearer {first.token}", unfinished=True)
    with pytest.raises(PasswordChangeRequired):
        house.check(proof)
    house.clock.forward(301)
    again = house.prove(first.token)
    assert (again.step, again.expire_time) == ("CHANGE_PASSWORD", first.expire_time)
    proof = house.credentials.identify(f"Bearer {again.token}", unfinished=True)
    assert fresh_mfa(proof.mfa_time, house.clock())
    done = house.change(proof.credential, PASSWORD, OTHER)
    assert done.expire_time == house.clock() + timedelta(hours=12)
    assert house.identify(done.token).principal.id == "alice"
    house.clock.forward(60)
    assert house.prove(house.login(OTHER).token).step == "COMPLETE"
