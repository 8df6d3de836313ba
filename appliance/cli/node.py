"""`appliance node`: the servers that run jobs and replicas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.command import command as make
from appliance.cli.options import made_token, token_out
from appliance.cli.output import field, last, state, wide
from appliance.cli.prompts import agree

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession


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
    ("STATE", state()),
    ("DEVICES", lambda row: f"{row['devices_used']}/{row['devices']} {row['device_kind']}"),
    ("MEMORY", _memory),
    ("SEEN", field("seen_time")),
    wide("ADDRESS", field("address")),
    wide("VERSION", field("agent_version")),
    ("RUNS", _runs),
    ("LACKS", _lacks),
]

JOIN_TOKENS = [
    ("TOKEN", field("id")),
    ("FOR", lambda row: row["node"] or row["gateway"]),
    ("MADE BY", lambda row: last("creator")(row) or "offline"),
    ("MADE", field("create_time")),
    ("ENDS", field("expire_time")),
]

command = click.Group("node", help="See and add servers.")


@make("list", "NodeService.ListNodes", group=command)
def list_(session: CommandSession) -> None:
    """List every node."""
    session.show(session.rows("NodeService.ListNodes", "nodes"), COLUMNS)


@make("get", "NodeService.GetNode", group=command)
@click.argument("name", metavar="NODE")
def get(session: CommandSession, name: str) -> None:
    """Show one node."""
    session.show(session.call("NodeService.GetNode", name=session.name("node", name)))


@make("create-join-token", "NodeService.CreateJoinToken", group=command)
@click.argument("node_id", metavar="NODE")
@token_out
def create_join_token(session: CommandSession, node_id: str, out: Path | None) -> None:
    """Make a token with which one server may join once, within ten minutes."""

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
@click.option("--yes", is_flag=True, help="Do not ask.")
def evict(session: CommandSession, name: str, *, yes: bool) -> None:
    """Refuse a node from now on; its work starts elsewhere."""
    full = session.name("node", name)
    if not yes:
        agree(f"Evict {full}? It can never come back with its present identity.")
    session.show(session.call("NodeService.EvictNode", name=full), COLUMNS)
