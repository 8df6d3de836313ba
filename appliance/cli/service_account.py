"""`appliance service-account`: applications and their tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.command import command as make
from appliance.cli.fields import FieldOption
from appliance.cli.options import made_token, token_out
from appliance.cli.output import field, last

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

COLUMNS = [
    ("SERVICE ACCOUNT", last()),
    ("PROJECT", last("project")),
    ("LOCKED", field("locked")),
    ("TOKENS", lambda row: ", ".join(token["id"] for token in row["tokens"])),
    ("CREATED", field("create_time")),
]

TOKENS = [
    ("TOKEN", field("id")),
    ("SERVICE ACCOUNT", last("service_account")),
    ("MADE BY", last("creator")),
    ("MADE", field("create_time")),
    ("ENDS", field("expire_time")),
]

command = click.Group("service-account", help="Manage applications and their tokens.")


@make("create", "ServiceAccountService.CreateServiceAccount", group=command, project=True)
@click.argument("account", metavar="ACCOUNT")
def create(session: CommandSession, account: str) -> None:
    """Create a service account in a project."""
    made = session.call(
        "ServiceAccountService.CreateServiceAccount",
        parent=session.parent,
        service_account_id=account,
    )
    session.show(made, COLUMNS)


@make("get", "ServiceAccountService.GetServiceAccount", group=command, project=True)
@click.argument("name", metavar="ACCOUNT")
def get(session: CommandSession, name: str) -> None:
    """Show one service account and its live tokens."""
    full = session.name("serviceAccount", name)
    session.show(session.call("ServiceAccountService.GetServiceAccount", name=full))


@make("list", "ServiceAccountService.ListServiceAccounts", group=command, project=True)
def list_(session: CommandSession) -> None:
    """List the service accounts of a project."""
    method = "ServiceAccountService.ListServiceAccounts"
    session.show(session.rows(method, "service_accounts", parent=session.parent), COLUMNS)


@make("list-tokens", "ServiceAccountService.ListServiceAccounts", group=command, project=True)
def list_tokens(session: CommandSession) -> None:
    """List the live tokens of a project's applications, and who made them."""
    method = "ServiceAccountService.ListServiceAccounts"
    accounts = session.each(method, "service_accounts", parent=session.parent)
    tokens = (
        {"service_account": each["name"], **token} for each in accounts for token in each["tokens"]
    )
    session.show(tokens, TOKENS)


@make("create-token", "ServiceAccountService.CreateToken", group=command, project=True)
@click.argument("name", metavar="ACCOUNT")
@click.option(
    "--days",
    cls=FieldOption,
    default_of=("access.v1.service_account_service.CreateTokenRequest", "lifetime_days", ""),
    type=int,
    help="Days until it ends.",
)
@token_out
def create_token(session: CommandSession, name: str, days: int | None, out: Path | None) -> None:
    """Make a token; it is shown once and never stored."""
    full = session.name("serviceAccount", name)

    def make_token() -> dict[str, str]:
        lifetime = {} if days is None else {"lifetime_days": days}
        made = session.call("ServiceAccountService.CreateToken", name=full, **lifetime)
        return {
            "token": made.token,
            "id": made.metadata.id,
            "service_account": full,
            "expire_time": made.metadata.expire_time.ToJsonString(),
        }

    session.show(made_token(out, make_token))


@make("revoke-token", "ServiceAccountService.RevokeToken", group=command, project=True)
@click.argument("name", metavar="ACCOUNT")
@click.argument("token_id", metavar="ID")
def revoke_token(session: CommandSession, name: str, token_id: str) -> None:
    """End a token; it stops to work before this returns."""
    full = session.name("serviceAccount", name)
    session.show(session.call("ServiceAccountService.RevokeToken", name=full, token_id=token_id))
