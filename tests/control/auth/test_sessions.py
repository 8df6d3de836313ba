"""Log-in, second factor, and the life of a session, from the first token to the last."""

import threading
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pyotp
import pytest
from sqlalchemy import delete, select, update

from appliance.control.auth import join_tokens, service_tokens, sessions
from appliance.control.auth.credentials import fresh_mfa
from appliance.control.services.system.sweeper import Sweeper
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.errors import (
    Exhausted,
    FailedPrecondition,
    MfaRequired,
    NotFound,
    Unauthenticated,
)
from appliance.core.identity import ANONYMOUS, Principal, PrincipalKind
from tests.fakes.log_in import ALICE, KEY, PASSWORD, House
from tests.fakes.state import (
    FastPasswords,
    StandingClock,
    add_application,
    add_project,
    add_user,
)


@pytest.fixture
def house(state: Database, clock: StandingClock) -> House:
    return House(state, clock)


def test_from_the_first_log_in_to_a_complete_session(house: House) -> None:
    started = house.login()
    assert (started.step, started.principal) == ("ENROLL_TOTP", ALICE)
    uri = house.log_in.enroll_totp(started.token)
    assert uri.startswith("otpauth://totp/appliance:alice?secret=")
    house.device = pyotp.TOTP(parse_qs(urlsplit(uri).query)["secret"][0])
    done = house.prove(started.token)
    assert (done.principal, len(done.recovery_codes)) == (ALICE, 10)
    assert done.expire_time == house.clock() + timedelta(hours=12)
    proof = house.identify(done.token)
    assert (proof.principal, proof.mfa_time) == (ALICE, house.clock())
    house.clock.forward(30)
    again = house.login()
    assert again.step == "VERIFY_TOTP"
    assert house.prove(again.token).recovery_codes == []


@pytest.mark.attack
def test_a_half_finished_session_identifies_nobody(house: House) -> None:
    started = house.login()
    with pytest.raises(MfaRequired, match="enter the code"):
        house.identify(started.token)
    assert house.credentials.live() == []


@pytest.mark.attack
def test_the_token_from_before_the_second_factor_ends_with_it(house: House) -> None:
    started = house.login()
    uri = house.log_in.enroll_totp(started.token)
    house.device = pyotp.TOTP(parse_qs(urlsplit(uri).query)["secret"][0])
    done = house.prove(started.token)
    assert done.token != started.token
    with pytest.raises(Unauthenticated):
        house.identify(started.token)


@pytest.mark.attack
def test_unknown_user_wrong_password_and_locked_user_answer_alike(house: House) -> None:
    add_user(house.state, "bob", FastPasswords().hash(PASSWORD), locked=True)
    answers = set()
    for user, password in (
        ("nobody", PASSWORD),
        ("alice", "wrong password 1"),
        ("bob", PASSWORD),
        ("bob", "wrong password 1"),
        ("no such id!", PASSWORD),
        ("", ""),
    ):
        with pytest.raises(Unauthenticated) as raised:
            house.login(password, user)
        answers.add((raised.value.message, raised.value.reason, str(raised.value.metadata)))
    assert len(answers) == 1


@pytest.mark.attack
def test_an_unknown_user_costs_the_same_work(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[str] = []
    passwords = house.passwords
    real = passwords._matches
    monkeypatch.setattr(
        passwords,
        "_matches",
        lambda stored, text: verified.append(stored[:9]) or real(stored, text),
    )
    for user in ("alice", "nobody"):
        with pytest.raises(Unauthenticated):
            house.login("wrong password 1", user)
    assert verified == ["$argon2id", "$argon2id"]


@pytest.mark.attack
def test_one_code_among_many_at_once_works_once(house: House) -> None:
    house.enrol()
    house.clock.forward(60)
    token = house.login().token
    code = house.device.at(house.clock())
    ready, outcomes = threading.Barrier(4), []

    def prove() -> None:
        ready.wait(10)
        try:
            house.log_in.verify_totp(token, code=code)
        except Unauthenticated:
            outcomes.append("refused")
        else:
            outcomes.append("done")

    threads = [threading.Thread(target=prove) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["done"] + ["refused"] * 3


@pytest.mark.attack
def test_five_wrong_codes_end_the_log_in(house: House) -> None:
    house.enrol()
    house.clock.forward(60)
    token = house.login().token
    for _ in range(4):
        with pytest.raises(Unauthenticated, match="wrong or was used"):
            house.log_in.verify_totp(token, code="000000")
    with pytest.raises(Unauthenticated, match="this session has ended"):
        house.log_in.verify_totp(token, code="000000")
    with pytest.raises(Unauthenticated, match="not valid or has ended"):
        house.prove(token)


@pytest.mark.attack
def test_wrong_codes_of_log_ins_count_as_failed_log_ins(house: House) -> None:
    house.enrol()
    house.clock.forward(60)
    for _ in range(16):
        token = house.login().token
        for _ in range(5):
            with pytest.raises(Unauthenticated):
                house.log_in.verify_totp(token, code="000000")
        house.clock.forward(900)
    house.fail(4)
    with pytest.raises(Exhausted, match="too many failed attempts: log in from a device"):
        house.login()


@pytest.mark.attack
def test_five_wrong_codes_end_a_live_session_too(house: House) -> None:
    token = house.enrol().token
    house.clock.forward(60)
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            house.log_in.verify_totp(token, code="000000")
    with pytest.raises(Unauthenticated):
        house.identify(token)


def test_a_recovery_code_stands_in_once(house: House) -> None:
    codes = house.enrol().recovery_codes
    house.log_in.verify_totp(house.login().token, recovery_code=codes[0])
    with pytest.raises(Unauthenticated):
        house.log_in.verify_totp(house.login().token, recovery_code=codes[0])


@pytest.mark.attack
def test_a_recovery_code_cannot_end_an_enrolment(house: House) -> None:
    started = house.login()
    house.log_in.enroll_totp(started.token)
    for code in ("", "a" * 26):
        with pytest.raises(Unauthenticated):
            house.log_in.verify_totp(started.token, recovery_code=code)


@pytest.mark.attack
def test_a_second_authenticator_needs_the_first(house: House) -> None:
    house.enrol()
    token = house.login().token
    with pytest.raises(FailedPrecondition, match="enter its code"):
        house.log_in.enroll_totp(token)


def test_a_session_ends_after_twelve_hours_and_after_half_an_hour_without_use(
    house: House,
) -> None:
    token = house.enrol().token
    for _ in range(28):
        house.clock.forward(25 * 60)
        house.identify(token)
    house.clock.forward(20 * 60 - 1)
    house.identify(token)
    house.clock.forward(1)
    with pytest.raises(Unauthenticated):
        house.identify(token)
    token = house.prove(house.login().token).token
    house.clock.forward(30 * 60)
    with pytest.raises(Unauthenticated):
        house.identify(token)


def test_proving_again_makes_the_proof_fresh_and_the_session_no_longer(house: House) -> None:
    first = house.enrol()
    house.clock.forward(301)
    proof = house.identify(first.token)
    assert not fresh_mfa(proof.mfa_time, house.clock())
    second = house.prove(first.token)
    proof = house.identify(second.token)
    assert fresh_mfa(proof.mfa_time, house.clock())
    assert second.expire_time == first.expire_time
    with pytest.raises(Unauthenticated):
        house.identify(first.token)


def test_how_long_a_proof_is_fresh(clock: StandingClock) -> None:
    now = clock()
    ages = [timedelta(), timedelta(minutes=5), timedelta(minutes=5, seconds=1), timedelta(days=-1)]
    assert [fresh_mfa(now - age, now) for age in ages] == [True, True, False, False]
    assert not fresh_mfa(None, now)


@pytest.mark.attack
def test_a_locked_user_is_out_at_once(house: House) -> None:
    token = house.enrol().token
    proof = house.identify(token)
    with house.state.write() as transaction:
        transaction.run(update(tables.user).values(locked=True))
    for call in (lambda: house.identify(token), lambda: house.check(proof)):
        with pytest.raises(Unauthenticated):
            call()
    assert house.credentials.live() == []
    with pytest.raises(Unauthenticated):
        house.prove(token)


@pytest.mark.attack
def test_a_session_that_was_ended_is_out_at_once(house: House) -> None:
    token = house.enrol().token
    proof = house.identify(token)
    house.sessions.end("alice", proof.credential)
    with pytest.raises(Unauthenticated):
        house.identify(token)
    house.clock.forward(30)
    token = house.prove(house.login().token).token
    with house.state.write() as transaction:
        assert sessions.revoke_all(transaction, "alice") == 1
    with pytest.raises(Unauthenticated):
        house.identify(token)


@pytest.mark.attack
@pytest.mark.parametrize("text", ["", "Bearer", "Bearer ", "Basic YTpi", "bearer sla_ses_0", "sla"])
def test_what_is_no_bearer_token_identifies_nobody(house: House, text: str) -> None:
    with pytest.raises(Unauthenticated):
        house.credentials.identify(text)


@pytest.mark.attack
def test_the_secret_of_another_session_does_not_fit(house: House) -> None:
    token = house.enrol().token
    with house.state.write() as transaction:
        transaction.run(update(tables.session).values(digest=b"\0" * 32))
    with pytest.raises(Unauthenticated):
        house.identify(token)


def test_whose_token_it_is(house: House) -> None:
    started = house.login()
    assert house.sessions.principal_of(started.token) == ALICE
    assert house.sessions.principal_of("sla") == ANONYMOUS


def test_a_hash_of_old_parameters_is_renewed_at_log_in(house: House) -> None:
    begun = house.log_in.begin("alice")
    newer = house.passwords.hash(PASSWORD)
    house.log_in.finish(begun, "", right=True, renewed=newer)
    with house.state.read() as reading:
        assert reading.value(select(tables.user.c.password_hash)) == newer
    house.login()


def test_nothing_secret_shows_itself(house: House) -> None:
    started = house.login()
    done = house.enrol()
    shown = repr(started) + repr(done) + repr(house.identify(done.token))
    assert not [word for word in (started.token, done.token, *done.recovery_codes) if word in shown]


# --- applications and servers ---------------------------------------------------------------------


def _application(house: House) -> service_tokens.NewToken:
    add_project(house.state, "red")
    add_application(house.state, "app", "red")
    return _token(house)


def _token(house: House, days: int = 30) -> service_tokens.NewToken:
    with house.state.write() as transaction:
        return service_tokens.create(transaction, KEY, "app", days, house.clock())


def test_an_application_s_token(house: House) -> None:
    made = _application(house)
    proof = house.identify(made.text)
    assert proof.principal == Principal(PrincipalKind.SERVICE_ACCOUNT, "app")
    assert (proof.mfa_time, proof.credential) == (None, made.id)
    assert proof.expire_time == house.clock() + timedelta(days=30)
    house.check(proof)
    live = house.credentials.live()
    assert [(found.id, found.principal) for found in live] == [(made.id, proof.principal)]
    house.clock.forward(30 * 86400)
    with pytest.raises(Unauthenticated):
        house.identify(made.text)
    assert house.credentials.live() == []


def test_a_token_is_replaced_without_a_gap_and_without_piling_up(house: House) -> None:
    first = _application(house)
    second = _token(house)
    with pytest.raises(FailedPrecondition, match="revoke one"):
        _token(house)
    with house.state.write() as transaction:
        service_tokens.revoke(transaction, "app", first.id)
    with pytest.raises(Unauthenticated):
        house.identify(first.text)
    assert house.identify(second.text).credential == second.id
    with pytest.raises(NotFound), house.state.write() as transaction:
        service_tokens.revoke(transaction, "other", second.id)


@pytest.mark.attack
def test_a_locked_application_is_out_at_once(house: House) -> None:
    made = _application(house)
    proof = house.identify(made.text)
    with house.state.write() as transaction:
        transaction.run(update(tables.service_account).values(locked=True))
    for call in (lambda: house.identify(made.text), lambda: house.check(proof)):
        with pytest.raises(Unauthenticated):
            call()
    with house.state.write() as transaction:
        transaction.run(delete(tables.service_account))
    with pytest.raises(Unauthenticated):
        house.identify(made.text)


GPU_1 = Principal(PrincipalKind.NODE, "gpu-1")


def _join_token(house: House) -> join_tokens.NewJoinToken:
    with house.state.write() as transaction:
        return join_tokens.create(transaction, KEY, GPU_1, "user:alice", house.clock())


def _join(house: House, text: str) -> str:
    with house.state.write() as transaction:
        return str(join_tokens.consume(transaction, KEY, text, house.clock()).machine)


@pytest.mark.attack
def test_a_join_token_works_once_and_for_ten_minutes(house: House) -> None:
    token = _join_token(house).text
    assert _join(house, token) == "gpu-1"
    late = _join_token(house).text
    house.clock.forward(600)
    answers = set()
    for text in (token, late, "sla", house.login().token):
        with pytest.raises(Unauthenticated) as raised:
            _join(house, text)
        answers.add(raised.value.message)
    assert len(answers) == 1


def test_join_tokens_that_ended_are_deleted_after_a_day(house: House) -> None:
    used, unused = _join_token(house), _join_token(house)
    _join(house, used.text)

    def kept() -> set[str]:
        with house.state.read() as state:
            return {row.id for row in state.all(select(tables.join_token))}

    sweeper = Sweeper(house.state, house.clock, lambda: 0.0)
    house.clock.forward(24 * 3600)
    young = _join_token(house)
    sweeper.sweep()
    assert kept() == {used.id, unused.id, young.id}
    house.clock.forward(600)
    sweeper.sweep()
    assert kept() == {young.id}


@pytest.mark.attack
def test_of_two_servers_with_one_token_one_joins(house: House) -> None:
    token, joined = _join_token(house).text, []

    def join() -> None:
        try:
            joined.append(_join(house, token))
        except Unauthenticated:
            joined.append("refused")

    threads = [threading.Thread(target=join) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(joined) == ["gpu-1", "refused", "refused", "refused"]


def test_a_join_that_fails_later_keeps_the_token(house: House) -> None:
    token = _join_token(house).text

    def fail() -> None:
        with house.state.write() as transaction:
            join_tokens.consume(transaction, KEY, token, house.clock())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert _join(house, token) == "gpu-1"
