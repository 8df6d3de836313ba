"""`appliance user`: people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli import prompts
from appliance.cli.command import command as make
from appliance.cli.output import field, last

if TYPE_CHECKING:
    from appliance.cli.session import Session

COLUMNS = [
    ("USER", last()),
    ("LOCKED", field("locked")),
    ("AUTHENTICATOR", field("totp_enrolled")),
    ("CREATED", field("create_time")),
]

command = click.Group("user", help="Manage people.")


@make("create", "UserService.CreateUser", group=command)
@click.argument("user_id", metavar="USER")
@click.option("--password-file", metavar="FILE", help="First password; `-` is standard input.")
def create(session: Session, user_id: str, password_file: str | None) -> None:
    """Create a user with a first password."""
    password = prompts.password(password_file, f"First password of {user_id}", twice=True)
    made = session.call("UserService.CreateUser", user_id=user_id, password=password)
    session.show(made, COLUMNS)


@make("get", "UserService.GetUser", group=command)
@click.argument("name", metavar="USER")
def get(session: Session, name: str) -> None:
    """Show one user."""
    session.show(session.call("UserService.GetUser", name=session.name("user", name)))


@make("list", "UserService.ListUsers", group=command)
def list_(session: Session) -> None:
    """List every user."""
    session.show(session.list("UserService.ListUsers", "users"), COLUMNS)


@make("lock", "UserService.LockUser", group=command)
@click.argument("name", metavar="USER")
def lock(session: Session, name: str) -> None:
    """Lock a user: live sessions stop at once."""
    session.show(session.call("UserService.LockUser", name=session.name("user", name)), COLUMNS)


@make("unlock", "UserService.UnlockUser", group=command)
@click.argument("name", metavar="USER")
def unlock(session: Session, name: str) -> None:
    """Unlock a user and clear failed attempts."""
    session.show(session.call("UserService.UnlockUser", name=session.name("user", name)), COLUMNS)
