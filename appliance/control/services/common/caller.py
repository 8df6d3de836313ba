"""Who is calling now, as the gate found out; every service method takes one as its first argument.

Rules kept here:
* only the gate makes a `Caller` for a call from outside; services trust it and check no
  permissions themselves beyond what a rule in the proto cannot say;
* it holds no secret: it may be logged.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime

from appliance.core.errors import Internal
from appliance.core.identity import ANONYMOUS, Principal


@dataclass(frozen=True)
class Caller:
    """One identified caller of one request.

    Args:
        principal: who; `ANONYMOUS` only for RPCs that need no identity.
        request_id: joins the audit records and the log lines of this call.
        source: address the call came from, such as `ipv4:10.0.0.7:51312`.
        credential: id of the session or token, or serial of the certificate, that proved it.
        mfa_time: last proof of the second factor; None for machines and applications.
        expire_time: when the credential ends.
        upload: uid of the one upload that the call may be about, when its credential is that
            upload's token; empty for all others.
        notes: facts a service adds to the audit record of this call, such as who an anonymous
            caller turned out to be (`principal`); never a secret and never text of a dataset.
    """

    principal: Principal = ANONYMOUS
    request_id: str = ""
    source: str = ""
    credential: str = ""
    mfa_time: datetime | None = None
    expire_time: datetime | None = None
    upload: str = ""
    notes: dict[str, str] = field(default_factory=dict, compare=False)


_current: ContextVar[Caller] = ContextVar("caller")


def current_caller() -> Caller:
    """The caller of the request being served. `Internal` outside of one."""
    try:
        return _current.get()
    except LookupError as error:
        raise Internal("there is no caller: this code runs outside of a request") from error


def known_caller() -> Caller | None:
    """The caller of the request being served as far as the gate found out; None before that."""
    return _current.get(None)


def set_current_caller(caller: Caller) -> None:
    """For the gate: from here on this request is made by `caller`."""
    _current.set(caller)
