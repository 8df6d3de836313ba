"""One way for commands to change fields of a resource: those that were given, and no other.

Called by the `update` command of each noun.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

_Function = Callable[..., Any]


def etag_option() -> Callable[[_Function], _Function]:
    """`--etag`, for commands that change or delete what somebody has looked at."""
    return click.option(
        "--etag",
        metavar="ETAG",
        default="",
        help="Only when it is still as `get -o json` showed it.",
    )


def update(
    session: CommandSession, rpc: str, field: str, name: str, etag: str, **given: object
) -> Any:  # a resource of any noun
    """Call an Update method with the options that were given.

    Args:
        session: of the command.
        rpc: such as `ProjectService.UpdateProject`.
        field: of the request, in which the resource stands.
        name: of the resource, whole.
        etag: of the state it must have; empty for any.
        given: fields of the resource; None for an option that was not given.
    """
    changed = {key: value for key, value in given.items() if value is not None}
    if not changed:
        options = ", ".join("--" + key.replace("_", "-") for key in given)
        raise click.UsageError(f"say what to change: {options}")
    resource: dict[str, Any] = {field: {"name": name, "etag": etag, **changed}}
    return session.call(rpc, update_mask={"paths": sorted(changed)}, **resource)
