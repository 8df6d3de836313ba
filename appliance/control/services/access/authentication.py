"""Log in, prove the second factor, who am I, change the password, sessions: in the proto's words.

Rule kept here: whoever an anonymous caller turns out to be is noted for the audit record of the
call; what was typed as a password, a code or an unknown name is not.
"""

from __future__ import annotations

from typing import NoReturn

from appliance.api.auth.v1 import auth_service_pb2 as rpc
from appliance.control.auth import scopes
from appliance.control.auth.devices import device_id
from appliance.control.auth.log_in import LogIn, PendingLogIn
from appliance.control.auth.passwords import Passwords
from appliance.control.auth.policy import PolicyStore
from appliance.control.auth.sessions import Sessions
from appliance.control.events import ACCESS, ROUTING, Events
from appliance.control.services.access.session_resources import STEPS, session_resource
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.resources import missing, timestamp
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.names import is_id


class Authentication:
    """Sessions of people."""

    def __init__(  # noqa: PLR0913 - what a session touches
        self,
        *,
        database: Database,
        log_in: LogIn,
        sessions: Sessions,
        passwords: Passwords,
        policies: PolicyStore,
        events: Events,
    ) -> None:
        self._database = database
        self._log_in = log_in
        self._sessions = sessions
        self._passwords = passwords
        self._policies = policies
        self._events = events

    def begin_login(self, caller: Caller, request: rpc.LoginRequest) -> PendingLogIn:
        """Count a log-in; its password is verified next."""
        self._note_known(caller, request.user)
        begun = self._log_in.begin(
            request.user,
            device_token=request.device_token,
            recovery_code=request.recovery_code,
        )
        caller.notes["counted"] = begun.counted_for
        return begun

    def release(self, begun: PendingLogIn) -> None:
        """Give back a try whose password was never verified."""
        self._log_in.release(begun)

    def is_old(self, begun: PendingLogIn) -> bool:
        """Whether the hash that was verified was made with weaker parameters than today's."""
        return begun.stored is not None and self._passwords.is_old(begun.stored)

    def finish_login(
        self,
        caller: Caller,
        begun: PendingLogIn,
        right: bool,  # noqa: FBT001 - as `verify` said it
        renewed: str,
    ) -> rpc.LoginResponse:
        """Go on after the password was verified; `renewed` is its hash by newer parameters."""
        started = self._log_in.finish(begun, caller.source, right=right, renewed=renewed)
        return rpc.LoginResponse(token=started.token, next_step=STEPS[started.step])

    def enroll_totp(self, caller: Caller, request: rpc.EnrollTotpRequest) -> rpc.EnrollTotpResponse:
        """Start to enrol an authenticator."""
        self._note_owner(caller, request.token)
        return rpc.EnrollTotpResponse(provisioning_uri=self._log_in.enroll_totp(request.token))

    def verify_totp(self, caller: Caller, request: rpc.VerifyTotpRequest) -> rpc.VerifyTotpResponse:
        """Prove the second factor."""
        if bool(request.code) == bool(request.recovery_code):
            wrong = "set exactly one of code and recovery_code"
            raise InvalidInput(wrong, fields={"code": wrong})
        self._note_owner(caller, request.token)
        completed = self._log_in.verify_totp(
            request.token,
            code=request.code,
            recovery_code=request.recovery_code,
            source=caller.source,
        )
        if request.recovery_code:
            caller.notes["factor"] = "recovery code"
        if completed.device_token:
            caller.notes["device"] = device_id(completed.device_token)
        self._events.publish(ACCESS, ROUTING)
        return rpc.VerifyTotpResponse(
            token=completed.token,
            expire_time=timestamp(completed.expire_time),
            recovery_codes=completed.recovery_codes,
            device_token=completed.device_token,
            next_step=STEPS[completed.step],
        )

    def begin_change(self, caller: Caller, request: rpc.ChangePasswordRequest) -> PendingLogIn:
        """Check a new password and count a try of the present one, which is verified next."""
        _only_people(caller)
        self._passwords.check_new(request.new_password, caller.principal.id)
        if self._passwords.same(request.password, request.new_password):
            wrong = "it is the present password: take another one"
            raise InvalidInput(f"new_password: {wrong}", fields={"new_password": wrong})
        return self._log_in.begin_change(caller.credential)

    def refuse_change(self, begun: PendingLogIn) -> NoReturn:
        """The present password was wrong."""
        raise self._log_in.refuse_change(begun)

    def finish_change(
        self, caller: Caller, begun: PendingLogIn, hashed: str
    ) -> rpc.ChangePasswordResponse:
        """Put the new password, hashed, in the place of the one that was verified."""
        done = self._log_in.finish_change(begun, hashed, caller.source)
        caller.notes["device"] = device_id(done.device_token)
        self._events.publish(ACCESS, ROUTING)
        return rpc.ChangePasswordResponse(
            token=done.token,
            expire_time=timestamp(done.expire_time),
            device_token=done.device_token,
        )

    def list_sessions(self, caller: Caller) -> rpc.ListSessionsResponse:
        """The caller's own live sessions."""
        _only_people(caller)
        return rpc.ListSessionsResponse(
            sessions=[
                session_resource(row, caller.credential)
                for row in self._sessions.of(caller.principal.id)
            ]
        )

    def end_session(self, caller: Caller, request: rpc.EndSessionRequest) -> rpc.EndSessionResponse:
        """End one of the caller's own sessions."""
        _only_people(caller)
        self._sessions.end(caller.principal.id, request.session_id)
        self._events.publish(ACCESS, ROUTING)
        return rpc.EndSessionResponse()

    def who_am_i(self, caller: Caller) -> rpc.WhoAmIResponse:
        """The caller and the roles it holds."""
        held = self._policies.current().roles_of(caller.principal)
        return rpc.WhoAmIResponse(
            principal=caller.principal.name,
            roles=[f"{role}@{scopes.name(domain)}" for role, domain in held],
            expire_time=timestamp(caller.expire_time),
            mfa_time=timestamp(caller.mfa_time),
        )

    def list_my_permissions(
        self, caller: Caller, request: rpc.ListMyPermissionsRequest
    ) -> rpc.ListMyPermissionsResponse:
        """What the caller may do in a scope. A project without a role is like one not there."""
        domain = scopes.parse(request.scope, "scope")
        policy, roles = self._policies.current(), self._policies.roles
        project = tables.project
        with self._database.read() as state:
            there = state.first(project.select().where(project.c.id == domain)) is not None
        if is_id(domain) and not (there and policy.holds_any_role(caller.principal, domain)):
            raise missing(request.scope)
        return rpc.ListMyPermissionsResponse(
            permissions=[
                each
                for each in sorted(roles.permissions)
                if policy.allowed(caller.principal, domain, each)
            ]
        )

    def logout(self, caller: Caller) -> rpc.LogoutResponse:
        """End the caller's session; it stops to work before this returns."""
        _only_people(caller)
        self._sessions.end(caller.principal.id, caller.credential)
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


def _only_people(caller: Caller) -> None:
    if caller.principal.kind is not PrincipalKind.USER:
        raise FailedPrecondition(
            "only people have passwords and sessions: an application's token is ended with "
            "RevokeToken"
        )
