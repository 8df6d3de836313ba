"""Log in, prove the second factor, who am I, log out: `auth.sessions` in the words of the proto.

Rule kept here: whoever an anonymous caller turns out to be is noted for the audit record of the
call; what was typed as a password, a code or an unknown name is not.
"""

from __future__ import annotations

from appliance.api.auth.v1 import auth_service_pb2 as rpc
from appliance.control.auth import scopes
from appliance.control.auth.policy import PolicyStore
from appliance.control.auth.sessions import COMPLETE, ENROLL_TOTP, VERIFY_TOTP, Sessions
from appliance.control.events import ACCESS, ROUTING, Events
from appliance.control.services.caller import Caller
from appliance.control.services.resources import timestamp
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.names import is_id

_STEPS = {
    COMPLETE: rpc.SESSION_STEP_COMPLETE,
    VERIFY_TOTP: rpc.SESSION_STEP_VERIFY_TOTP,
    ENROLL_TOTP: rpc.SESSION_STEP_ENROLL_TOTP,
}


class Authentication:
    """Sessions of people."""

    def __init__(
        self, database: Database, sessions: Sessions, policies: PolicyStore, events: Events
    ) -> None:
        self._database = database
        self._sessions = sessions
        self._policies = policies
        self._events = events

    def login(self, caller: Caller, request: rpc.LoginRequest) -> rpc.LoginResponse:
        """Check a password."""
        self._note_known(caller, request.user)
        started = self._sessions.login(request.user, request.password, caller.source)
        return rpc.LoginResponse(token=started.token, next_step=_STEPS[started.step])

    def enroll_totp(self, caller: Caller, request: rpc.EnrollTotpRequest) -> rpc.EnrollTotpResponse:
        """Start to enrol an authenticator."""
        self._note_owner(caller, request.token)
        return rpc.EnrollTotpResponse(provisioning_uri=self._sessions.enroll_totp(request.token))

    def verify_totp(self, caller: Caller, request: rpc.VerifyTotpRequest) -> rpc.VerifyTotpResponse:
        """Prove the second factor."""
        if bool(request.code) == bool(request.recovery_code):
            wrong = "set exactly one of code and recovery_code"
            raise InvalidInput(wrong, fields={"code": wrong})
        self._note_owner(caller, request.token)
        completed = self._sessions.verify_totp(
            request.token,
            code=request.code,
            recovery_code=request.recovery_code,
            source=caller.source,
        )
        if request.recovery_code:
            caller.notes["factor"] = "recovery code"
        self._events.publish(ACCESS, ROUTING)
        return rpc.VerifyTotpResponse(
            token=completed.token,
            expire_time=timestamp(completed.expire_time),
            recovery_codes=completed.recovery_codes,
        )

    def who_am_i(self, caller: Caller) -> rpc.WhoAmIResponse:
        """The caller and the roles it holds."""
        held = self._policies.current().roles_of(caller.principal)
        return rpc.WhoAmIResponse(
            principal=caller.principal.name,
            roles=[f"{role}@{scopes.name(domain)}" for role, domain in held],
            expire_time=timestamp(caller.expire_time),
            mfa_time=timestamp(caller.mfa_time),
        )

    def logout(self, caller: Caller) -> rpc.LogoutResponse:
        """End the caller's session; it stops to work before this returns."""
        if caller.principal.kind is not PrincipalKind.USER:
            raise FailedPrecondition(
                "only people have sessions: an application's token is ended with RevokeToken"
            )
        self._sessions.logout(caller.credential)
        self._events.publish(ACCESS, ROUTING)
        return rpc.LogoutResponse()

    def _note_owner(self, caller: Caller, token: str) -> None:
        owner = self._sessions.principal_of(token)
        if owner.id:
            caller.notes["principal"] = owner.name

    def _note_known(self, caller: Caller, user: str) -> None:
        # A name nobody has may be a password typed into the wrong field: it is not noted.
        if not is_id(user):
            return
        with self._database.read() as state:
            if state.first(tables.user.select().where(tables.user.c.id == user)) is not None:
                caller.notes["principal"] = Principal(PrincipalKind.USER, user).name
