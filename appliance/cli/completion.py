"""`appliance completion`: the completion script of a shell."""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    Load it with `source <(appliance completion bash)`.
    """
    from click.shell_completion import get_completion_class  # noqa: PLC0415 - only needed here

    root = ctx.find_root()
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"there is no completion for {shell}")
    click.echo(found(root.command, {}, "appliance", "_APPLIANCE_COMPLETE").source())
