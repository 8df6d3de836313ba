"""Sessions of people as they are shown: to themselves, and to who manages people."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from appliance.api.auth.v1 import auth_service_pb2 as rpc
from appliance.control.auth.sessions import CHANGE_PASSWORD, COMPLETE, ENROLL_TOTP, VERIFY_TOTP
from appliance.control.services.common.resources import timestamp

STEPS = {
    COMPLETE: rpc.SESSION_STEP_COMPLETE,
    VERIFY_TOTP: rpc.SESSION_STEP_VERIFY_TOTP,
    ENROLL_TOTP: rpc.SESSION_STEP_ENROLL_TOTP,
    CHANGE_PASSWORD: rpc.SESSION_STEP_CHANGE_PASSWORD,
}


def session_resource(row: Row[Any], current: str = "") -> rpc.Session:
    """A session; `current` is the id of the one of the call."""
    return rpc.Session(
        id=row.id,
        step=STEPS[row.step],
        create_time=timestamp(row.create_time),
        seen_time=timestamp(row.seen_time),
        expire_time=timestamp(row.expire_time),
        mfa_time=timestamp(row.mfa_time),
        source=row.source,
        current=row.id == current,
    )
