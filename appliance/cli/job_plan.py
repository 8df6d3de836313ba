"""How a plan looks: what a job needs, and where it would run now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import field, last, plain, safe
from appliance.cli.output import show as print_table
from appliance.core.numbers import readable

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

NODES = [
    ("NODE", last("node")),
    ("RANKS NOW", field("ranks")),
    ("WHY NOT", field("reason")),
]


def show(session: CommandSession, plan: Any) -> None:
    """Print a plan as the command was asked to."""
    found = plain(plan)
    if session.shared.output != "table":
        session.show(found)
        return
    for name, text in _needs(found).items():
        click.echo(f"{name}: {safe(text)}")
    if found["nodes"]:
        click.echo()
        print_table(found["nodes"], "table", NODES)


def _needs(plan: dict[str, Any]) -> dict[str, str]:
    device, host = int(plan["device_memory_bytes"]), int(plan["host_memory_bytes"])
    needs = {
        "ranks": str(plan["ranks"]),
        "memory of each rank": f"{readable(host)} set aside on its node",
        "Python modules": ", ".join(plan["modules"]),
        "now": plan["waits_for"] or "it would start",
    }
    if device:
        needs["memory of each rank"] += f", {readable(device)} of it on a GPU where there is one"
    return needs
