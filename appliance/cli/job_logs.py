"""How the last output of a job's ranks looks: text on stdout, where it is from beside it.

Rule kept here: what ranks wrote may hold anything; no control character of it reaches a terminal.
"""

from __future__ import annotations

import json
import re
from typing import Any

import click

from appliance.cli.output import safe

_FIELDS = {"ts", "level", "logger", "message"}


def show(logs: dict[str, Any]) -> None:
    """Print the logs of one job, given as a dictionary.

    As `tail` does: with several nodes each has a heading among the text, so that a file shows which
    is which, and what ranks wrote is moved to the right where it looks like one; the heading of a
    single one, and what is missing, are talk.
    """
    if logs["reason"]:
        click.echo(f"{logs['name']}: {safe(logs['reason'])}", err=True)
    several = len(logs["nodes"]) > 1
    for entry in logs["nodes"]:
        click.echo(f"==> {heading(entry, logs['epoch'])} <==", err=not several)
        if entry["text"]:
            text = "\n".join(readable(line) for line in entry["text"].splitlines())
            click.echo(re.sub(r"^(?=\s*==>)", " ", text, flags=re.MULTILINE) if several else text)


def heading(entry: dict[str, Any], epoch: str) -> str:
    """Which node and start a text is of, when it came, and whether it is all."""
    words = [safe(entry["node"]), f"start {epoch}"]
    if "receive_time" not in entry:
        return ", ".join([*words, "nothing has come: it was not heard of again, or has not ended"])
    words.append(entry["receive_time"][:19].replace("T", " ") + " UTC")
    if not entry["text"]:
        words.append("its ranks wrote nothing")
    elif entry["cut"]:
        words.append("only the last lines")
    return ", ".join(words)


def readable(line: str) -> str:
    """A line for a terminal: a record of our own logs as text, whatever else as it is."""
    record = _record(line)
    if record is None:
        return safe(line, keep="\t")
    head = f"{record['ts']} {record['level']} {record['message']}"
    trace = [f"    {each}" for each in str(record.get("exception", "")).splitlines()]
    return "\n".join(safe(each, keep="\t") for each in [*head.splitlines(), *trace])


def _record(line: str) -> dict[str, Any] | None:
    if not line.startswith('{"ts": '):
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.keys() >= _FIELDS else None
