"""`appliance node`: the servers that run jobs and replicas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.command import command as make
from appliance.cli.describing import Rows, section
from appliance.cli.fields import FieldOption
from appliance.cli.following import Duration, changes, wait_options
from appliance.cli.options import made_token, token_out
from appliance.cli.output import field, last, plain, safe, state, wide
from appliance.cli.prompts import agree, yes_option
from appliance.cli.updating import etag_option
from appliance.core.errors import FailedPrecondition

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession


WATCH = "NodeService.WatchNode"
LOST, ENDING = "STATE_LOST", "ENDING"


def _state(row: dict[str, Any]) -> str:
    """As kubectl does: what it is, and whether it takes work."""
    how = "draining" if row["draining"] else "cordoned" if row["cordoned"] else ""
    return ", ".join(filter(None, (state()(row), how)))


def _name(row: dict[str, Any]) -> str:
    return row["name"] or "(not yours to see)"


def _memory(row: dict[str, Any]) -> str:
    used, total = (int(row[key]) / (1 << 30) for key in ("memory_used_bytes", "memory_bytes"))
    return f"{used:.1f}/{total:.1f} GiB"


def _runs(row: dict[str, Any]) -> str:
    """Kinds of work; an agent that does not say counts as able to run everything."""
    able = [each["kind"] for each in row["capabilities"] if each["available"]]
    if len(able) == len(row["capabilities"]):
        return "everything"
    return ", ".join(able) or "nothing"


def _lacks(row: dict[str, Any]) -> str:
    reasons = (each["reason"] for each in row["capabilities"] if not each["available"])
    return "; ".join(dict.fromkeys(reasons))


COLUMNS = [
    ("NODE", last()),
    ("STATE", _state),
    ("DEVICES", lambda row: f"{row['devices_used']}/{row['devices']} {row['device_kind']}"),
    ("MEMORY", _memory),
    ("SEEN", field("seen_time")),
    wide("ADDRESS", field("address")),
    wide("VERSION", field("agent_version")),
    ("RUNS", _runs),
    ("LACKS", _lacks),
]

WORK = [
    ("WORK", _name),
    ("KIND", field("kind")),
    ("STATE", field("state")),
    ("DEVICES", field("devices")),
    ("NOTE", field("note")),
]

JOIN_TOKENS = [
    ("TOKEN", field("id")),
    ("FOR", lambda row: row["node"] or row["gateway"]),
    ("MADE BY", lambda row: last("creator")(row) or "offline"),
    ("MADE", field("create_time")),
    ("ENDS", field("expire_time")),
]

command = click.Group("node", help="See, add, empty and remove servers.")


@make("list", "NodeService.ListNodes", group=command)
def list_(session: CommandSession) -> None:
    """List every node."""
    session.show(session.rows("NodeService.ListNodes", "nodes"), COLUMNS)


@make("get", "NodeService.GetNode", group=command)
@click.argument("name", metavar="NODE")
def get(session: CommandSession, name: str) -> None:
    """Show one node."""
    session.show(session.call("NodeService.GetNode", name=session.name("node", name)))


@section(command, "Work")
def work_of(session: CommandSession, node: dict[str, Any]) -> Rows:
    """What runs there."""
    del session
    return node["work"], WORK


@make("cordon", "NodeService.CordonNode", group=command)
@click.argument("name", metavar="NODE")
@click.option("--reason", default="", metavar="TEXT", help="Why, for whoever waits for it.")
def cordon(session: CommandSession, name: str, reason: str) -> None:
    """Place nothing new on a node; what runs there goes on."""
    full = session.name("node", name)
    session.show(session.call("NodeService.CordonNode", name=full, reason=reason), COLUMNS)


@make("uncordon", "NodeService.UncordonNode", group=command)
@click.argument("name", metavar="NODE")
def uncordon(session: CommandSession, name: str) -> None:
    """Let work come to a node again; ends a cordon, and a drain."""
    made = session.call("NodeService.UncordonNode", name=session.name("node", name))
    session.show(made, COLUMNS)


@make("drain", "NodeService.DrainNode", WATCH, group=command)
@click.argument("name", metavar="NODE")
@click.option("--reason", default="", metavar="TEXT", help="Why, for whoever waits for it.")
@click.option(
    "--grace",
    cls=FieldOption,
    default_of=("nodes.v1.node_service.DrainNodeRequest", "grace_seconds", ""),
    type=Duration(),
    metavar="TIME",
    help="Longest time in which jobs save a checkpoint, or end, such as 5m, 24h at most.",
)
@wait_options
def drain(  # its options
    session: CommandSession,
    name: str,
    *,
    reason: str,
    grace: float | None,
    wait: bool,
    timeout: float | None,
) -> None:
    """Cordon a node, and let what runs there go on elsewhere: jobs from a checkpoint they save."""
    more = {} if grace is None else {"grace_seconds": math.ceil(grace)}
    full = session.name("node", name)
    made = session.call("NodeService.DrainNode", name=full, reason=reason, **more)
    node = _until_empty(session, full, timeout) if wait else plain(made)
    session.show(node, COLUMNS)
    _say_work(node["work"])
    if wait:
        click.echo(_emptied(node), err=True)


@make("remove", "NodeService.DeleteNode", group=command)
@click.argument("name", metavar="NODE")
@yes_option()
@etag_option()
def remove(session: CommandSession, name: str, etag: str, *, yes: bool) -> None:
    """Delete a node on which nothing runs; its name is free for another server."""
    full = session.name("node", name)
    if not yes:
        agree(f"Delete {full}? Its server can come back only with a new join token.")
    session.call("NodeService.DeleteNode", name=full, etag=etag)
    session.show({"name": full, "deleted": True})


def _until_empty(session: CommandSession, name: str, timeout: float | None) -> dict[str, Any]:
    """The node when nothing is left on it.

    Raises FailedPrecondition when somebody ends the drain meanwhile.
    """
    node: dict[str, Any] = {}
    said: list[Any] = []
    for each in changes(session, WATCH, name, timeout):
        node = plain(each)
        if not node["draining"]:
            raise FailedPrecondition(f"{name} is not drained any more: somebody has uncordoned it")
        # What a node that is away has not ended it ends when it is back.
        away = node["state"] == LOST
        left = [work for work in node["work"] if not (away and work["state"] == ENDING)]
        if not left:
            break
        if left != said:
            _say_work(left)
            said = left
    return node


def _say_work(work: list[dict[str, Any]]) -> None:
    """What is still on a node, a line each, on stderr."""
    for each in work:
        note = f": {each['note']}" if each["note"] else ""
        line = f"still there: {_name(each)} {each['kind']} {each['state']}{note}"
        click.echo(safe(line), err=True)


def _emptied(node: dict[str, Any]) -> str:
    name = last()(node)
    if node["state"] == LOST:
        return f"{name} is away: what it still runs ends when it is back"
    return f"nothing runs on {name} any more; `appliance node uncordon {name}` lets work come again"


@make("create-join-token", "NodeService.CreateJoinToken", group=command)
@click.argument("node_id", metavar="NODE")
@token_out
def create_join_token(session: CommandSession, node_id: str, out: Path | None) -> None:
    """Make a token with which one server may join once, within ten minutes.

    One that was evicted comes back with it.
    """

    def make_token() -> dict[str, str]:
        made = session.call("NodeService.CreateJoinToken", node_id=node_id)
        return {
            "token": made.token,
            "id": made.token_id,
            "ca_fingerprint": made.ca_fingerprint,
            "expire_time": made.expire_time.ToJsonString(),
        }

    session.show(made_token(out, make_token))


@make("list-join-tokens", "NodeService.ListJoinTokens", group=command)
def list_join_tokens(session: CommandSession) -> None:
    """List the join tokens that can still be used."""
    session.show(session.rows("NodeService.ListJoinTokens", "join_tokens"), JOIN_TOKENS)


@make("revoke-join-token", "NodeService.RevokeJoinToken", group=command)
@click.argument("token_id", metavar="ID")
def revoke_join_token(session: CommandSession, token_id: str) -> None:
    """End a join token; no server can join with it once this returns."""
    session.call("NodeService.RevokeJoinToken", token_id=token_id)
    click.echo("revoked", err=True)


@make("evict", "NodeService.EvictNode", group=command)
@click.argument("name", metavar="NODE")
@yes_option()
def evict(session: CommandSession, name: str, *, yes: bool) -> None:
    """Refuse a node from now on; its work starts elsewhere."""
    full = session.name("node", name)
    if not yes:
        agree(f"Evict {full}? It can never come back with its present identity.")
    session.show(session.call("NodeService.EvictNode", name=full), COLUMNS)
