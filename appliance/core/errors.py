"""The one exception tree of the appliance.

A gRPC code, a stable reason, and a sentence that says what to do next.

Rules kept here:
* every error a caller may see is an `ApplianceError`; anything else is a bug and leaves the process
  as INTERNAL;
* `code` is the name of a gRPC status code (a string: this package knows no gRPC), `reason` is
  UPPER_SNAKE, never changes its meaning, and is what programs compare; `message` is for a person;
* one reason belongs to one class, so that the other end of a call can raise the same class again
  (`BY_REASON`).

Called by every package; `appliance.wire.status` maps the tree to and from `google.rpc.Status`.
"""

from __future__ import annotations

from typing import ClassVar

PROGRESS = "in_progress"
"""A key of `metadata`: what the server is doing, and will end, so that waiting is worth it."""


class ApplianceError(Exception):
    """What went wrong: `code`, `reason`, `metadata` for a program, `message` for a person.

    Args:
        message: one sentence or two that say what is wrong and what to do next.
        fields: path of a request's field -> what is wrong with it.
        retry_after: seconds after which the same call may succeed; None when waiting does not help.
        metadata: facts for a program, such as `object="projects/p/models/m"`; values become text.
    """

    code: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        fields: dict[str, str] | None = None,
        retry_after: float | None = None,
        **metadata: object,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.fields: dict[str, str] = dict(fields or {})
        self.retry_after = retry_after
        self.metadata: dict[str, str] = {key: str(value) for key, value in metadata.items()}

    def __str__(self) -> str:
        """The sentence for a person."""
        return self.message


class InvalidInput(ApplianceError):
    """The request itself is wrong; the same request can never succeed."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_INPUT"


class ContextExceeded(InvalidInput):
    """The prompt is longer than the model's context leaves room for."""

    reason = "CONTEXT_LENGTH_EXCEEDED"


class NotFound(ApplianceError):
    """There is no such resource, or the caller may not know that there is one."""

    code = "NOT_FOUND"
    reason = "RESOURCE_NOT_FOUND"


class AlreadyExists(ApplianceError):
    """The name is taken."""

    code = "ALREADY_EXISTS"
    reason = "ALREADY_EXISTS"


class Denied(ApplianceError):
    """The caller is known and may not do this."""

    code = "PERMISSION_DENIED"
    reason = "PERMISSION_DENIED"


class FreshMfaRequired(Denied):
    """The caller may do this, but only shortly after a second factor."""

    reason = "FRESH_MFA_REQUIRED"


class Unauthenticated(ApplianceError):
    """Nobody knows who the caller is."""

    code = "UNAUTHENTICATED"
    reason = "UNAUTHENTICATED"


class MfaRequired(Unauthenticated):
    """The password was right; the second factor is still missing."""

    reason = "MFA_REQUIRED"


class PasswordChangeRequired(Unauthenticated):
    """Password and second factor were right; the password must be replaced first."""

    reason = "PASSWORD_CHANGE_REQUIRED"


class Conflict(ApplianceError):
    """Somebody else changed the resource first; read it again, then repeat."""

    code = "ABORTED"
    reason = "EDIT_CONFLICT"


class LeaseLost(Conflict):
    """Another epoch acts for this work now; the holder of the old lease must stop."""

    reason = "LEASE_LOST"


class FailedPrecondition(ApplianceError):
    """The request is right, but the system is not in the state it needs."""

    code = "FAILED_PRECONDITION"
    reason = "FAILED_PRECONDITION"


class Exhausted(ApplianceError):
    """A quota, a limit or a device is used up."""

    code = "RESOURCE_EXHAUSTED"
    reason = "RESOURCE_EXHAUSTED"


class StoreFull(Exhausted):
    """The object store has no space left; what waits for some goes on when there is some."""

    reason = "STORE_FULL"


class Paused(ApplianceError):
    """The job was told to pause, and has saved a checkpoint; it goes on when it is resumed."""

    code = "ABORTED"
    reason = "PAUSED"

    @classmethod
    def at(cls, step: int) -> Paused:
        """After the checkpoint of a step, which is then in the metadata."""
        return cls(f"saved the checkpoint of step {step}", step=step)


class Unavailable(ApplianceError):
    """The other side cannot be reached or is busy; the same call may succeed later."""

    code = "UNAVAILABLE"
    reason = "UNAVAILABLE"


class Untrusted(Unavailable):
    """What answers is not believed to be the server that is meant; waiting does not help."""

    reason = "UNTRUSTED_SERVER"


class AuditUnavailable(Unavailable):
    """The audit record could not be made durable, so nothing was done."""

    reason = "AUDIT_UNAVAILABLE"


class Cancelled(ApplianceError):
    """The caller left before the answer was complete."""

    code = "CANCELLED"
    reason = "CANCELLED"


class UnknownMethod(ApplianceError):
    """The server has no such call; it may be older than its caller."""

    code = "UNIMPLEMENTED"
    reason = "UNKNOWN_METHOD"


class Tampered(ApplianceError):
    """Stored or received bytes are not what was written. `metadata["object"]` names them."""

    code = "DATA_LOSS"
    reason = "OBJECT_TAMPERED"


class Stale(Tampered):
    """The bytes are authentic but older than what is recorded: storage was rolled back."""

    reason = "STALE_OBJECT"


class Internal(ApplianceError):
    """A bug. The message names a request id, never the inside of the system."""


BY_REASON: dict[str, type[ApplianceError]] = {
    error.reason: error
    for error in (
        InvalidInput,
        ContextExceeded,
        NotFound,
        AlreadyExists,
        Denied,
        FreshMfaRequired,
        Unauthenticated,
        MfaRequired,
        PasswordChangeRequired,
        Conflict,
        LeaseLost,
        FailedPrecondition,
        Exhausted,
        StoreFull,
        Paused,
        Unavailable,
        Untrusted,
        AuditUnavailable,
        Cancelled,
        UnknownMethod,
        Tampered,
        Stale,
        Internal,
    )
}
