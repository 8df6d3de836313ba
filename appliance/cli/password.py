"""`appliance password`: one's own password."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from appliance.cli import prompts
from appliance.cli.command import command as make
from appliance.cli.moments import clock

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

command = click.Group("password", help="Change your own password.")


@make("change", "AuthService.ChangePassword", group=command)
@click.option("--password-file", metavar="FILE", help="Present password; `-` is standard input.")
@click.option("--new-password-file", metavar="FILE", help="New password; `-` is standard input.")
def change_(
    session: CommandSession, password_file: str | None, new_password_file: str | None
) -> None:
    """Change your password: every other session of yours ends, other devices are forgotten."""
    user = session.profile.user
    session.profiles.check_writable()
    present = prompts.password(password_file, f"Present password of {user}")
    new = prompts.password(new_password_file, f"New password of {user}", twice=True)
    change(session, user, present, new)


def change(session: CommandSession, user: str, present: str, new: str) -> None:
    """Change the password of the session's user; the session goes on under a new token."""
    done = session.call("AuthService.ChangePassword", password=present, new_password=new)
    profile = replace(session.profile, user=user)
    session.profiles.keep_token(profile, done.token)
    session.profiles.keep_device(profile, user, done.device_token)
    click.echo(
        f"the password of {user} is changed; you are logged in until "
        f"{clock(done.expire_time.ToJsonString())}",
        err=True,
    )
