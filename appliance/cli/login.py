"""`appliance login`: password, then the second factor; the first time, enrol an authenticator.

Rule kept here: what the server knows this device by is sent with the password and kept, so that
somebody else's wrong guesses do not keep its user out.
"""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli import moments, prompts
from appliance.cli import password as passwords
from appliance.cli.authenticator import code_of
from appliance.cli.command import command as make
from appliance.cli.files import new_secret
from appliance.core.errors import (
    InvalidInput,
    MfaRequired,
    PasswordChangeRequired,
    Unauthenticated,
)

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

COMPLETE, VERIFY, ENROLL, CHANGE = 1, 2, 3, 4  # SessionStep


@make(
    "login",
    "AuthService.Login",
    "AuthService.EnrollTotp",
    "AuthService.VerifyTotp",
    "AuthService.ChangePassword",
)
@click.option("--user", metavar="U", help="Your id.  [default: the one of the last time]")
@click.option("--password-file", metavar="FILE", help="Your password; `-` is standard input.")
@click.option(
    "--recovery-code-file",
    metavar="FILE",
    help="A recovery code instead of the authenticator; `-` is standard input.",
)
@click.option(
    "--new-password-file",
    metavar="FILE",
    help="Your next password, when the present one was chosen by somebody else.",
)
@click.option(
    "--authenticator-out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="At a first log-in of a program: write the authenticator's secret to this new file, 0600, "
    "and prove it from there. Keep it apart from the password.",
)
def command(
    session: CommandSession,
    user: str | None,
    password_file: str | None,
    recovery_code_file: str | None,
    new_password_file: str | None,
    authenticator_out: Path | None,
) -> None:
    """Log in with password and authenticator."""
    profile = session.profile
    session.profiles.check_writable()
    user = user or profile.user or _ask_user()
    password = prompts.password(password_file, f"Password of {user}")
    recovery_code = prompts.first_line(recovery_code_file) if recovery_code_file else ""
    begun = session.call(
        "AuthService.Login",
        user=user,
        password=password,
        device_token=session.profiles.device(profile, user),
        recovery_code=recovery_code,
    )
    if begun.next_step == ENROLL and authenticator_out is not None:
        done = _enrol_into(session, begun.token, authenticator_out)
    else:
        if begun.next_step == ENROLL:
            _enrol(session, begun.token)
        done = _prove(session, begun.token, recovery_code)
    session.profiles.put(replace(profile, user=user), use=False)
    session.profiles.keep_token(profile, done.token)
    if done.device_token:
        session.profiles.keep_device(profile, user, done.device_token)
    _finish(session, user, done)
    if done.next_step == CHANGE:
        session.use_token(done.token)
        _replace(session, user, password, new_password_file)


def _enrol(session: CommandSession, token: str) -> None:
    """Enrol an authenticator of a person."""
    if not prompts.interactive() and session.shared.code_file is None:
        raise MfaRequired(
            "The password is right, and an authenticator must be enrolled first: log in in a "
            "terminal, or give --authenticator-out FILE. Nothing was enrolled, so that no secret "
            "is in the output of a script."
        )
    _show_secret(session.call("AuthService.EnrollTotp", token=token).provisioning_uri)


def _enrol_into(session: CommandSession, token: str, path: Path) -> Any:
    """Enrol an authenticator that a program keeps, and prove that it has it."""
    with new_secret(path) as file:
        uri = session.call("AuthService.EnrollTotp", token=token).provisioning_uri
        file.write(uri.encode() + b"\n")
    click.echo(f"the authenticator's secret is in {path}, readable by you alone", err=True)
    return session.call("AuthService.VerifyTotp", token=token, code=code_of(uri, time.time()))


def _replace(session: CommandSession, user: str, password: str, source: str | None) -> None:
    """Replace a password that somebody else chose; nothing else is allowed before."""
    if source is None and not prompts.interactive():
        raise PasswordChangeRequired(
            "Your password was chosen by somebody else and must be replaced first: log in in a "
            "terminal, or give --new-password-file FILE."
        )
    click.echo("Your password was chosen by somebody else: choose your own.", err=True)
    for left in reversed(range(prompts.tries(source))):
        new = prompts.password(source, f"New password of {user}", twice=True)
        try:
            passwords.change(session, user, password, new)
        except InvalidInput as error:
            if left == 0:
                raise prompts.in_words(
                    InvalidInput,
                    f"{error.message}. You are logged in: go on with `appliance password change`",
                    error,
                ) from error
            click.echo(error.message, err=True)
        else:
            return


def _ask_user() -> str:
    if not prompts.interactive():
        raise click.UsageError("say who you are with --user")
    typed: str = click.prompt("User", err=True)
    return typed


def _show_secret(uri: str) -> None:
    """Print the authenticator's secret as a QR code and as text; it is shown once."""
    import qrcode  # noqa: PLC0415 - only a first log-in needs it

    picture = io.StringIO()
    code = qrcode.QRCode(border=2)
    code.add_data(uri)
    code.print_ascii(out=picture, invert=True)
    click.echo("Scan this with an authenticator app; it is shown once:", err=True)
    click.echo(picture.getvalue() + uri, err=True)


def _prove(session: CommandSession, token: str, recovery_code: str) -> Any:
    """Prove the second factor; a person may mistype it."""
    if recovery_code:
        try:
            return session.call("AuthService.VerifyTotp", token=token, recovery_code=recovery_code)
        except Unauthenticated as error:
            raise prompts.in_words(
                Unauthenticated,
                "this recovery code is wrong or was used before: take another one",
                error,
            ) from error
    tries = prompts.tries(session.shared.code_file)
    while True:
        tries -= 1
        code_or_none = prompts.code(session.shared.code_file)
        if code_or_none is None:
            raise MfaRequired(
                "The password is right, and a code is needed too: log in in a terminal, or give "
                "--code-file FILE."
            )
        try:
            return session.call("AuthService.VerifyTotp", token=token, code=code_or_none)
        except (InvalidInput, Unauthenticated) as error:
            if tries == 0:
                raise
            click.echo(error.message, err=True)


def _finish(session: CommandSession, user: str, done: Any) -> None:
    facts = {
        "token_expire_time": done.expire_time.ToJsonString(),
        "recovery_codes": list(done.recovery_codes),
    }
    if session.shared.output != "table":
        session.show(facts)
        return
    click.echo(f"logged in as {user} until {moments.clock(facts['token_expire_time'])}", err=True)
    if done.recovery_codes:
        click.echo("Recovery codes, shown once; each works once. Keep them offline:", err=True)
        for code in done.recovery_codes:
            click.echo(code)
