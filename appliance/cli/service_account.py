"""`appliance service-account`: applications and their tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli import principal_view, updating
from appliance.cli.command import command as make
from appliance.cli.fields import FieldOption
from appliance.cli.options import made_token, token_out
from appliance.cli.output import field, last, wide
from appliance.cli.prompts import agree, yes_option
from appliance.cli.updating import etag_option

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

COLUMNS = [
    ("SERVICE ACCOUNT", last()),
    ("PROJECT", last("project")),
    ("LOCKED", field("locked")),
    ("TOKENS", lambda row: ", ".join(token["id"] for token in row["tokens"])),
    ("CREATED", field("create_time")),
    wide("DESCRIPTION", field("description")),
]

TOKENS = [
    ("TOKEN", field("id")),
    ("SERVICE ACCOUNT", last("service_account")),
    ("MADE BY", last("creator")),
    wide("MADE", field("create_time")),
    ("LAST USED", lambda row: field("use_time")(row) or "never seen"),
    ("ENDS", field("expire_time")),
    ("REPLACED BY", field("replaced_by")),
]

_SERVICE = "access.v1.service_account_service"

command = click.Group("service-account", help="Manage applications and their tokens.")


@make("create", "ServiceAccountService.CreateServiceAccount", group=command, project=True)
@click.argument("account", metavar="ACCOUNT")
@click.option("--description", default="", help="What it is for.")
def create(session: CommandSession, account: str, description: str) -> None:
    """Create a service account in a project."""
    made = session.call(
        "ServiceAccountService.CreateServiceAccount",
        parent=session.parent,
        service_account_id=account,
        description=description,
    )
    session.show(made, COLUMNS)


@make("get", "ServiceAccountService.GetServiceAccount", group=command, project=True)
@click.argument("name", metavar="ACCOUNT")
def get(session: CommandSession, name: str) -> None:
    """Show one service account and its live tokens."""
    principal_view.show(
        session,
        "ServiceAccountService.GetServiceAccount",
        "SERVICE_ACCOUNT_VIEW_FULL",
        session.name("serviceAccount", name),
    )


@make("list", "ServiceAccountService.ListServiceAccounts", group=command, project=True)
def list_(session: CommandSession) -> None:
    """List the service accounts of a project."""
    method = "ServiceAccountService.ListServiceAccounts"
    session.show(session.rows(method, "service_accounts", parent=session.parent), COLUMNS)


@make("update", "ServiceAccountService.UpdateServiceAccount", group=command, project=True)
@click.argument("name", metavar="ACCOUNT")
@click.option("--description", help="What it is for.")
@click.option(
    "--locked/--no-locked", default=None, help="Whether it is refused, with every token it has."
)
@etag_option()
def update(session: CommandSession, name: str, etag: str, **given: object) -> None:
    """Change the description of a service account; lock it, or let it in again."""
    made = updating.update(
        session,
        "ServiceAccountService.UpdateServiceAccount",
        "service_account",
        session.name("serviceAccount", name),
        etag,
        **given,
    )
    session.show(made, COLUMNS)


@make("delete", "ServiceAccountService.DeleteServiceAccount", group=command, project=True)
@click.argument("name", metavar="ACCOUNT")
@etag_option()
@yes_option()
def delete(session: CommandSession, name: str, etag: str, *, yes: bool) -> None:
    """Delete a service account with its tokens and roles; the name may be used again."""
    full = session.name("serviceAccount", name)
    if not yes:
        agree(f"Delete {full}? Its tokens stop to work at once, and for good.")
    answer = session.call("ServiceAccountService.DeleteServiceAccount", name=full, etag=etag)
    session.show(answer.service_account, COLUMNS)
    principal_view.say_what_goes_on(answer.service_account)


@make("list-tokens", "ServiceAccountService.ListTokens", group=command, project=True)
@click.option("--account", metavar="ACCOUNT", help="Only those of this application.")
@click.option("--made-by", metavar="USER", help="Only those that this person made.")
@click.option(
    "--unused-days",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Only those that nobody has used for so many days.",
)
@click.option("--everywhere", is_flag=True, help="Of all projects.")
def list_tokens(
    session: CommandSession,
    account: str | None,
    made_by: str | None,
    unused_days: int,
    *,
    everywhere: bool,
) -> None:
    """List the live tokens of a project's applications: who made them, who uses them."""
    wanted: dict[str, Any] = {
        "scope": "projects/-" if everywhere else session.parent,
        "service_account": session.name("serviceAccount", account) if account else "",
        "creator": session.name("user", made_by) if made_by else "",
        "unused_days": unused_days,
    }
    session.show(session.rows("ServiceAccountService.ListTokens", "tokens", **wanted), TOKENS)


@make("create-token", "ServiceAccountService.CreateToken", group=command, project=True)
@click.argument("name", metavar="ACCOUNT")
@click.option(
    "--days",
    cls=FieldOption,
    default_of=(f"{_SERVICE}.CreateTokenRequest", "lifetime_days", ""),
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
        return _facts(made, full)

    session.show(made_token(out, make_token))


@make("rotate-token", "ServiceAccountService.RotateToken", group=command, project=True)
@click.argument("name", metavar="ACCOUNT")
@click.argument("token_id", metavar="ID")
@click.option(
    "--overlap-hours",
    cls=FieldOption,
    default_of=(f"{_SERVICE}.RotateTokenRequest", "overlap_hours", ""),
    type=int,
    help="Hours for which the old one goes on; 0 ends it now.",
)
@click.option(
    "--days",
    cls=FieldOption,
    default_of=(f"{_SERVICE}.RotateTokenRequest", "lifetime_days", ""),
    type=int,
    help="Days until the new one ends.",
)
@token_out
def rotate_token(
    session: CommandSession,
    name: str,
    token_id: str,
    overlap_hours: int | None,
    days: int | None,
    out: Path | None,
) -> None:
    """Make a token in the place of another one, which goes on for a while; it is shown once."""
    full = session.name("serviceAccount", name)
    given = {"overlap_hours": overlap_hours, "lifetime_days": days}
    wanted = {key: value for key, value in given.items() if value is not None}

    def make_token() -> dict[str, str]:
        made = session.call(
            "ServiceAccountService.RotateToken", name=full, token_id=token_id, **wanted
        )
        return {
            **_facts(made, full),
            "replaces": made.metadata.replaces,
            "replaced_expire_time": made.replaced.expire_time.ToJsonString(),
        }

    session.show(made_token(out, make_token))


@make("revoke-token", "ServiceAccountService.RevokeToken", group=command, project=True)
@click.argument("name", metavar="ACCOUNT")
@click.argument("token_id", metavar="ID")
def revoke_token(session: CommandSession, name: str, token_id: str) -> None:
    """End a token; it stops to work before this returns."""
    full = session.name("serviceAccount", name)
    session.show(session.call("ServiceAccountService.RevokeToken", name=full, token_id=token_id))


def _facts(made: Any, account: str) -> dict[str, str]:
    """What is shown once of a new token."""
    return {
        "token": made.token,
        "id": made.metadata.id,
        "service_account": account,
        "expire_time": made.metadata.expire_time.ToJsonString(),
    }
