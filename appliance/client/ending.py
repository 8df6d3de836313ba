"""How what was waited for ended; light, since the command and programs raise the same errors."""

from __future__ import annotations

from appliance.core.errors import ApplianceError


class JobFailed(ApplianceError):
    """A job that was waited for did not succeed."""

    code = "ABORTED"
    reason = "JOB_FAILED"


class WaitTimedOut(ApplianceError):
    """A wait ended before the work did; the work goes on."""

    code = "DEADLINE_EXCEEDED"
    reason = "WAIT_TIMED_OUT"
