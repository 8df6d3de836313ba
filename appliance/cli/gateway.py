"""`appliance gateway`: the processes that answer callers from replicas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.command import command as make
from appliance.cli.options import made_token, token_out
from appliance.cli.output import field, last, state
from appliance.cli.prompts import agree, yes_option
from appliance.cli.updating import etag_option

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

COLUMNS = [
    ("GATEWAY", last()),
    ("STATE", state()),
    ("CONNECTED", field("connected")),
    ("HOSTS", lambda row: ", ".join(row["hosts"])),
    ("IDENTITY ENDS", field("expire_time")),
    ("FRONT ENDS", field("front_expire_time")),
]

command = click.Group("gateway", help="See, add and remove gateways.")


@make("list", "GatewayService.ListGateways", group=command)
def list_(session: CommandSession) -> None:
    """List every gateway: one that is READY may call, one that is connected runs now."""
    session.show(session.rows("GatewayService.ListGateways", "gateways"), COLUMNS)


@make("get", "GatewayService.GetGateway", group=command)
@click.argument("name", metavar="GATEWAY")
def get(session: CommandSession, name: str) -> None:
    """Show one gateway."""
    session.show(session.call("GatewayService.GetGateway", name=session.name("gateway", name)))


@make("remove", "GatewayService.DeleteGateway", group=command)
@click.argument("name", metavar="GATEWAY")
@yes_option()
@etag_option()
def remove(session: CommandSession, name: str, etag: str, *, yes: bool) -> None:
    """Delete a gateway that was evicted or is stopped; its name is free for another one."""
    full = session.name("gateway", name)
    if not yes:
        agree(f"Delete {full}? It can come back only with a new join token.")
    session.call("GatewayService.DeleteGateway", name=full, etag=etag)
    session.show({"name": full, "deleted": True})


@make("create-join-token", "GatewayService.CreateGatewayJoinToken", group=command)
@click.argument("gateway_id", metavar="GATEWAY")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="HOST",
    help="DNS name or address that clients use; can be repeated.  [default: as before]",
)
@token_out
def create_join_token(
    session: CommandSession, gateway_id: str, hosts: tuple[str, ...], out: Path | None
) -> None:
    """Make a token with which one gateway may join once, within ten minutes.

    It is listed and revoked with those of nodes.
    """

    def make_token() -> dict[str, str]:
        made = session.call(
            "GatewayService.CreateGatewayJoinToken", gateway_id=gateway_id, hosts=list(hosts)
        )
        return {
            "token": made.token,
            "id": made.token_id,
            "ca_fingerprint": made.ca_fingerprint,
            "expire_time": made.expire_time.ToJsonString(),
        }

    session.show(made_token(out, make_token))


@make("evict", "GatewayService.EvictGateway", group=command)
@click.argument("name", metavar="GATEWAY")
@yes_option()
def evict(session: CommandSession, name: str, *, yes: bool) -> None:
    """Refuse a gateway from now on; its streams to replicas end within ten seconds."""
    full = session.name("gateway", name)
    if not yes:
        agree(f"Evict {full}? It can never come back with its present identity.")
    session.show(session.call("GatewayService.EvictGateway", name=full), COLUMNS)
