"""The parts of a log-in on a database of its own, a user, and the user's authenticator."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pyotp
import pytest
from sqlalchemy import delete, insert, select

from appliance.control.auth.credentials import Credentials, ProvenIdentity
from appliance.control.auth.log_in import Completed, LogIn, Started
from appliance.control.auth.sessions import Sessions
from appliance.control.auth.totp import Totp
from appliance.control.store.database import Database
from appliance.control.store.tables import attempt
from appliance.core.errors import Unauthenticated
from appliance.core.identity import Principal, PrincipalKind
from tests.fakes.state import FastPasswords, StandingClock, add_user

KEY = b"t" * 32
PASSWORD = "tall grass by the mill"
ALICE = Principal(PrincipalKind.USER, "alice")


class House:
    """The parts of a log-in, a user, and the user's authenticator."""

    def __init__(self, state: Database, clock: StandingClock) -> None:
        self.state, self.clock = state, clock
        self.passwords = FastPasswords()
        add_user(state, "alice", self.passwords.hash(PASSWORD))
        self.sessions = Sessions(state, KEY, clock)
        self.log_in = LogIn(
            database=state,
            sessions=self.sessions,
            totp=Totp(b"f" * 32, KEY),
            token_key=KEY,
            clock=clock,
        )
        self.credentials = Credentials(
            database=state, sessions=self.sessions, token_key=KEY, clock=clock
        )
        self.device: pyotp.TOTP

    def login(self, password: str = PASSWORD, user: str = "alice", **known: str) -> Started:
        begun = self.log_in.begin(user, **known)
        right = self.passwords.verify(begun.stored, password)
        return self.log_in.finish(begun, "ipv4:10.0.0.1:5", right=right)

    def fail(self, times: int, user: str = "alice", **known: str) -> None:
        """Wrong passwords, each as soon as it may be tried."""
        for _ in range(times):
            with pytest.raises(Unauthenticated):
                self.login("wrong password 1", user, **known)
            self.clock.forward(900)

    def shut(self, counter: str = "user:alice") -> None:
        """As a hundred failures leave a counter."""
        with self.state.write() as transaction:
            transaction.run(delete(attempt).where(attempt.c.account == counter))
            transaction.run(
                insert(attempt).values(account=counter, failures=100, next_time=self.clock())
            )

    def failures(self) -> dict[str, int]:
        """What is counted, without the ids of devices."""
        with self.state.read() as reading:
            rows = reading.all(select(attempt))
        return {row.account.partition(":")[0]: row.failures for row in rows}

    def change(self, session: str, present: str, new: str) -> Completed:
        begun = self.log_in.begin_change(session)
        if not self.passwords.verify(begun.stored, present):
            raise self.log_in.refuse_change(begun)
        return self.log_in.finish_change(begun, self.passwords.hash(new), "test")

    def enrol(self) -> Completed:
        started = self.login()
        uri = self.log_in.enroll_totp(started.token)
        self.device = pyotp.TOTP(parse_qs(urlsplit(uri).query)["secret"][0])
        return self.prove(started.token)

    def prove(self, token: str) -> Completed:
        return self.log_in.verify_totp(token, code=self.device.at(self.clock()))

    def identify(self, token: str) -> ProvenIdentity:
        return self.credentials.identify(f"Bearer {token}")

    def check(self, proof: ProvenIdentity) -> None:
        """Look at a credential again, as a change that gives something away does."""
        with self.state.read() as reading:
            self.credentials.check(reading, proof.principal, proof.credential)
