"""`appliance user`: people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli import principal_view, prompts, updating
from appliance.cli.command import command as make
from appliance.cli.output import field, last, wide
from appliance.cli.prompts import agree, yes_option
from appliance.cli.updating import etag_option

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

COLUMNS = [
    ("USER", last()),
    ("LOCKED", field("locked")),
    ("AUTHENTICATOR", field("totp_enrolled")),
    wide("MUST CHANGE PASSWORD", field("must_change_password")),
    ("CREATED", field("create_time")),
    wide("DESCRIPTION", field("description")),
]

command = click.Group("user", help="Manage people.")


@make("create", "UserService.CreateUser", group=command)
@click.argument("user_id", metavar="USER")
@click.option("--password-file", metavar="FILE", help="First password; `-` is standard input.")
@click.option("--description", default="", help="Who it is.")
def create(
    session: CommandSession, user_id: str, password_file: str | None, description: str
) -> None:
    """Create a user with a first password, to be replaced at the first log-in."""
    password = prompts.password(password_file, f"First password of {user_id}", twice=True)
    made = session.call(
        "UserService.CreateUser", user_id=user_id, password=password, description=description
    )
    session.show(made, COLUMNS)


@make("get", "UserService.GetUser", group=command)
@click.argument("name", metavar="USER")
def get(session: CommandSession, name: str) -> None:
    """Show one user."""
    full = session.name("user", name)
    principal_view.show(session, "UserService.GetUser", "USER_VIEW_FULL", full)


@make("update", "UserService.UpdateUser", group=command)
@click.argument("name", metavar="USER")
@click.option("--description", help="Who it is.")
@etag_option()
def update(session: CommandSession, name: str, etag: str, **given: object) -> None:
    """Change the description of a user."""
    full = session.name("user", name)
    made = updating.update(session, "UserService.UpdateUser", "user", full, etag, **given)
    session.show(made, COLUMNS)


@make("delete", "UserService.DeleteUser", group=command)
@click.argument("name", metavar="USER")
@etag_option()
@yes_option()
def delete(session: CommandSession, name: str, etag: str, *, yes: bool) -> None:
    """Delete a user with sessions, second factor and roles; the name may be used again."""
    full = session.name("user", name)
    if not yes:
        agree(f"Delete {full}? Sessions, second factor, roles and open uploads go for good.")
    gone = session.call("UserService.DeleteUser", name=full, etag=etag).user
    session.show(gone, COLUMNS)
    principal_view.say_what_goes_on(gone)


@make("list", "UserService.ListUsers", group=command)
def list_(session: CommandSession) -> None:
    """List every user."""
    session.show(session.rows("UserService.ListUsers", "users"), COLUMNS)


@make("lock", "UserService.LockUser", group=command)
@click.argument("name", metavar="USER")
def lock(session: CommandSession, name: str) -> None:
    """Lock a user: live sessions stop at once, devices are forgotten."""
    locked = session.call("UserService.LockUser", name=session.name("user", name))
    session.show(locked, COLUMNS)
    principal_view.say_what_goes_on(locked)


@make("unlock", "UserService.UnlockUser", group=command)
@click.argument("name", metavar="USER")
def unlock(session: CommandSession, name: str) -> None:
    """Unlock a user and clear failed attempts."""
    session.show(session.call("UserService.UnlockUser", name=session.name("user", name)), COLUMNS)


@make("reset-password", "UserService.ResetPassword", group=command)
@click.argument("name", metavar="USER")
@click.option("--password-file", metavar="FILE", help="Next password; `-` is standard input.")
@yes_option()
def reset_password(
    session: CommandSession, name: str, password_file: str | None, *, yes: bool
) -> None:
    """Give a user another password, to be replaced at the next log-in; live sessions stop."""
    full = session.name("user", name)
    if not yes:
        agree(f"Reset the password of {full}? Every session of theirs ends.")
    password = prompts.password(password_file, f"Next password of {full}", twice=True)
    session.show(session.call("UserService.ResetPassword", name=full, password=password), COLUMNS)
    click.echo(f"every session of {full} has ended", err=True)


@make("reset-factor", "UserService.ResetFactor", group=command)
@click.argument("name", metavar="USER")
@yes_option()
def reset_factor(session: CommandSession, name: str, *, yes: bool) -> None:
    """Take a user's authenticator and recovery codes away; the next log-in enrols another one."""
    full = session.name("user", name)
    if not yes:
        agree(f"Reset the second factor of {full}? Until the next log-in its password is enough.")
    session.show(session.call("UserService.ResetFactor", name=full), COLUMNS)
    click.echo(f"every session of {full} has ended", err=True)


@make("end-sessions", "UserService.EndUserSessions", group=command)
@click.argument("name", metavar="USER")
def end_sessions(session: CommandSession, name: str) -> None:
    """End every session of a user; they stop to work before this returns."""
    session.show(session.call("UserService.EndUserSessions", name=session.name("user", name)))
