"""Every failure of the command as one sentence, a hint, and the exit code that says its kind.

Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 declined, or timed out while waiting;
4 log in or prove the second factor; 5 not allowed; 6 not found; 7 the server cannot be reached;
130 Ctrl-C.
"""

from __future__ import annotations

import os
import traceback

import click

from appliance.cli.output import safe
from appliance.cli.prompts import Declined, WrongCode
from appliance.cli.suggesting import of_choice
from appliance.client.ending import WaitTimedOut
from appliance.core import errors
from appliance.core.waiting import in_seconds

FAILED, USAGE, TIMED_OUT, LOG_IN, NOT_ALLOWED, NOT_FOUND, UNREACHABLE = range(1, 8)
INTERRUPTED = 130

_SERVER = (
    "`appliance context show` names the server in use; `appliance up --data-dir D` starts one on "
    "this machine"
)

# The first class that fits decides.
_CODES: tuple[tuple[type[errors.ApplianceError], int, str], ...] = (
    (WrongCode, LOG_IN, ""),
    (errors.FreshMfaRequired, LOG_IN, "repeat it in a terminal, or give --code-file"),
    (errors.PasswordChangeRequired, LOG_IN, "`appliance password change`"),
    (errors.Unauthenticated, LOG_IN, "log in with `appliance login`"),
    (errors.Denied, NOT_ALLOWED, "`appliance whoami` shows your roles"),
    (errors.NotFound, NOT_FOUND, "list what there is with the noun's `list` command"),
    (errors.AuditUnavailable, FAILED, "nothing was changed; look at the disk of the server"),
    (errors.Untrusted, UNREACHABLE, "`appliance context show` names the server in use"),
    (errors.Unavailable, UNREACHABLE, _SERVER),
)


def explain(error: Exception) -> int:
    """Print what went wrong to stderr and return the exit code."""
    if os.environ.get("APPLIANCE_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.ClickException):
        error.show()
        if meant := of_choice(error):
            _say(f"hint: {meant}")
        return error.exit_code
    if isinstance(error, errors.ApplianceError) and not isinstance(error, WaitTimedOut):
        return _explain_ours(error)
    code, text = _sentence(error)
    _say(text)
    return code


def _sentence(error: Exception) -> tuple[int, str]:
    if isinstance(error, click.Abort):
        # At a prompt nothing is under way; click says so by naming no cause.
        at_work = isinstance(error.__cause__, KeyboardInterrupt)
        return INTERRUPTED, "interrupted" + "; work on the server goes on" * at_work
    if isinstance(error, WaitTimedOut | Declined):
        return TIMED_OUT, str(error)
    if isinstance(error, OSError):
        about = f": {error.filename}" if error.filename else ""
        return FAILED, f"error: {error.strerror or error}{about}"
    hint = "hint: this is a fault of the command; APPLIANCE_DEBUG=1 shows where"
    return FAILED, f"error: {type(error).__name__}: {error}\n{hint}"


def _explain_ours(error: errors.ApplianceError) -> int:
    _say(f"error: {error.message}")
    for field, problem in error.fields.items():
        if problem not in error.message:
            _say(f"  {field}: {problem}")
    code, hint = FAILED, ""
    for kind, number, advice in _CODES:
        if isinstance(error, kind):
            code, hint = number, advice
            break
    hint = error.metadata.get("hint") or hint
    request = error.metadata.get("request_id")
    # What this machine itself could not find says what to do in its own sentence.
    if hint and (request or code != NOT_FOUND) and not _repeats(error.message, hint):
        _say(f"hint: {hint}")
    if error.retry_after is not None and in_seconds(error.retry_after) not in error.message:
        _say(f"hint: try again in {in_seconds(error.retry_after)}")
    if request:
        _say(f"request: {request} ({error.reason})")
    return code


def _repeats(message: str, hint: str) -> bool:
    """Whether the sentence already names every command of the hint."""
    commands = hint.split("`")[1::2]
    return bool(commands) and all(f"`{each}`" in message for each in commands)


def _say(text: str) -> None:
    # A sentence may quote what somebody else wrote.
    click.echo(safe(text, "\n"), err=True)
