"""`appliance service-account`: applications and their tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.command import command as make
from appliance.cli.files import write_secret
from appliance.cli.output import field, last

if TYPE_CHECKING:
    from appliance.cli.session import Session

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
def create(session: Session, account: str) -> None:
    """Create a service account in a project."""
    made = session.call(
        "ServiceAccountService.CreateServiceAccount",
        parent=session.parent,
        service_account_id=account,
    )
    session.show(made, COLUMNS)


@make("get", "ServiceAccountService.GetServiceAccount", group=command)
@click.argument("name", metavar="ACCOUNT")
def get(session: Session, name: str) -> None:
    """Show one service account and its live tokens."""
    full = session.name("serviceAccount", name)
    session.show(session.call("ServiceAccountService.GetServiceAccount", name=full))


@make("list", "ServiceAccountService.ListServiceAccounts", group=command, project=True)
def list_(session: Session) -> None:
    """List the service accounts of a project."""
    method = "ServiceAccountService.ListServiceAccounts"
    session.show(session.list(method, "service_accounts", parent=session.parent), COLUMNS)


@make("list-tokens", "ServiceAccountService.ListServiceAccounts", group=command, project=True)
def list_tokens(session: Session) -> None:
    """List the live tokens of a project's applications, and who made them."""
    method = "ServiceAccountService.ListServiceAccounts"
    accounts = session.list(method, "service_accounts", parent=session.parent)
    tokens = [
        {"service_account": each["name"], **token} for each in accounts for token in each["tokens"]
    ]
    session.show(tokens, TOKENS)


@make("create-token", "ServiceAccountService.CreateToken", group=command)
@click.argument("name", metavar="ACCOUNT")
@click.option("--days", type=click.IntRange(1, 90), help="Days until it ends.  [default: 30]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the token to this file, 0600, instead of printing it.",
)
def create_token(session: Session, name: str, days: int | None, out: Path | None) -> None:
    """Make a token; it is shown once and never stored."""
    made = session.call(
        "ServiceAccountService.CreateToken",
        name=session.name("serviceAccount", name),
        lifetime_days=days or 0,
    )
    facts = {"token": made.token, "id": made.metadata.id}
    facts["expire_time"] = made.metadata.expire_time.ToJsonString()
    if out is not None:
        write_secret(out, facts.pop("token"))
        click.echo(f"the token is in {out}, readable by you alone", err=True)
    session.show(facts)


@make("revoke-token", "ServiceAccountService.RevokeToken", group=command)
@click.argument("name", metavar="ACCOUNT")
@click.argument("token_id", metavar="ID")
def revoke_token(session: Session, name: str, token_id: str) -> None:
    """End a token; it stops to work before this returns."""
    full = session.name("serviceAccount", name)
    session.show(session.call("ServiceAccountService.RevokeToken", name=full, token_id=token_id))
