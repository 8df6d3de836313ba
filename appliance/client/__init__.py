"""The Python SDK: how internal applications, notebooks and the command call the appliance.

`Appliance` and `AsyncAppliance` are the same surface without and with an event loop; `docs/sdk.md`
has examples. What they return are the messages of `appliance.api`, and what they raise are the
errors of `appliance.core.errors`.

Names of this package are imported when they are used: the command's help needs no gRPC.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from appliance.client.answers import Answer
    from appliance.client.async_sdk import AsyncAppliance
    from appliance.client.ending import JobFailed, WaitTimedOut
    from appliance.client.sdk import Appliance
    from appliance.core.errors import (
        AlreadyExists,
        ApplianceError,
        Conflict,
        Denied,
        Exhausted,
        FailedPrecondition,
        FreshMfaRequired,
        InvalidInput,
        NotFound,
        Unauthenticated,
        Unavailable,
        UnknownMethod,
        Untrusted,
    )

_ERRORS = (
    "AlreadyExists",
    "ApplianceError",
    "Conflict",
    "Denied",
    "Exhausted",
    "FailedPrecondition",
    "FreshMfaRequired",
    "InvalidInput",
    "NotFound",
    "Unauthenticated",
    "Unavailable",
    "UnknownMethod",
    "Untrusted",
)
_HOMES = {
    "Answer": "appliance.client.answers",
    "Appliance": "appliance.client.sdk",
    "AsyncAppliance": "appliance.client.async_sdk",
    "JobFailed": "appliance.client.ending",
    "WaitTimedOut": "appliance.client.ending",
    **dict.fromkeys(_ERRORS, "appliance.core.errors"),
}
__all__ = [
    "AlreadyExists",
    "Answer",
    "Appliance",
    "ApplianceError",
    "AsyncAppliance",
    "Conflict",
    "Denied",
    "Exhausted",
    "FailedPrecondition",
    "FreshMfaRequired",
    "InvalidInput",
    "JobFailed",
    "NotFound",
    "Unauthenticated",
    "Unavailable",
    "UnknownMethod",
    "Untrusted",
    "WaitTimedOut",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
