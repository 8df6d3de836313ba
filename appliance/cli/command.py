"""What every command that calls a server shares: its options, its session, its permissions.

A command names the RPCs it calls. The session calls no other one, so that `--show-permission` is
true. Nothing here imports gRPC before a command runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

Function = Callable[..., None]
FORMS = ("table", "json", "yaml")
MAX_LINE = 200
"""Characters of the sentence that a list of commands shows."""
REPEATABLE = frozenset(
    {
        "BindingService.CreateBinding",
        "BindingService.DeleteBinding",
        "DatasetService.CreateDataset",
        "DatasetService.UploadDatasetVersion",
        "EndpointService.CreateEndpoint",
        "CheckpointService.DeleteCheckpoint",
        "EndpointService.DeleteEndpoint",
        "JobService.CancelJob",
        "JobService.CreateJob",
        "JobService.PauseJob",
        "JobService.ResumeJob",
        "ModelService.CreateModel",
        "ModelService.ImportModelVersion",
        "UploadService.CreateUpload",
        "GatewayService.DeleteGateway",
        "GatewayService.EvictGateway",
        "NodeService.CordonNode",
        "NodeService.DeleteNode",
        "NodeService.DrainNode",
        "NodeService.EvictNode",
        "NodeService.UncordonNode",
        "ProjectService.CreateProject",
        "ProjectService.UpdateProject",
        "ServiceAccountService.CreateServiceAccount",
        "UserService.CreateUser",
        "UserService.EndUserSessions",
        "UserService.LockUser",
        "UserService.ResetFactor",
        "UserService.ResetPassword",
        "UserService.UnlockUser",
    }
)
"""The RPCs whose request has a `request_id`; written down, as reading it takes gRPC."""


@dataclass(frozen=True)
class Shared:
    """The options that every command has."""

    output: str = "table"
    context: str = ""
    project: str = ""
    request_id: str = ""
    code_file: str | None = None
    methods: tuple[str, ...] = ()


class ServerCommand(click.Command):
    """A command that calls a server; `methods` are the RPCs it may call."""

    methods: tuple[str, ...] = ()

    def get_short_help_str(self, limit: int = 45) -> str:
        """Its line in a list of commands: a whole sentence, which goes on in the next line."""
        del limit
        return super().get_short_help_str(MAX_LINE)


def command(
    name: str,
    *methods: str,
    group: click.Group | None = None,
    project: bool = False,
    **settings: Any,
) -> Callable[[Function], click.Command]:
    """Make a command of a function that takes a `CommandSession` and its own options.

    Args:
        name: what is typed.
        methods: the RPCs it may call, `JobService.CreateJob`.
        group: the noun it is added to.
        project: whether it takes `--project`, for short names.
        settings: for `click.command`.
    """

    def decorate(function: Function) -> click.Command:
        @functools.wraps(function)
        def run(**values: Any) -> None:
            from appliance.cli.session import CommandSession  # noqa: PLC0415 - imports gRPC

            shared = Shared(
                output=values.pop("output"),
                context=values.pop("context") or "",
                project=(values.pop("project") or "") if project else "",
                request_id=str(values.pop("request_id", None) or ""),
                code_file=values.pop("code_file"),
                methods=methods,
            )
            with CommandSession(shared) as session:
                function(session, **values)

        made = click.command(name, cls=ServerCommand, **settings)(run)
        made.methods = methods
        made.params += _shared_options(methods, project=project)
        if group is not None:
            group.add_command(made)
        return made

    return decorate


def output_option() -> click.Option:
    """`-o`, for commands that call no server too."""
    return click.Option(
        ["-o", "--output"],
        type=click.Choice(FORMS),
        default="table",
        show_default=True,
        is_eager=True,
        help="How to print the result.",
    )


def _shared_options(methods: tuple[str, ...], *, project: bool) -> list[click.Parameter]:
    def show(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 - click's signature
        if wanted:
            _show_permissions(methods, ctx.params.get("output") or "table")
            ctx.exit()

    of_project = click.Option(
        ["--project"],
        metavar="P",
        envvar="APPLIANCE_PROJECT",
        help="Project of short names.  [default: the context's]",
    )
    repeat = click.Option(
        ["--request-id"],
        metavar="UUID",
        type=click.UUID,
        help="Repeat an earlier command: what it changed is not changed twice.",
    )
    return [
        *([of_project] if project else []),
        output_option(),
        click.Option(
            ["--context"],
            metavar="NAME",
            envvar="APPLIANCE_CONTEXT",
            help="Server to call.  [default: the current context]",
        ),
        *([repeat] if REPEATABLE.intersection(methods) else []),
        click.Option(
            ["--code-file"],
            metavar="FILE",
            help="Authenticator code for calls that need a fresh one; `-` is standard input.",
        ),
        click.Option(
            ["--show-permission"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=show,
            help="Print the calls and permissions it needs; call nothing.",
        ),
    ]


def _show_permissions(methods: tuple[str, ...], form: str) -> None:
    from appliance.cli import output  # noqa: PLC0415 - only this option needs it
    from appliance.client.methods import find  # noqa: PLC0415 - imports gRPC

    rows = []
    for name in methods:
        rule = find(name).rule
        rows.append(
            {
                "method": rule.method,
                "permission": rule.permission,
                "fresh_mfa": rule.fresh_mfa,
                "anyone": "anybody" if rule.anonymous else "who is logged in" if rule.own else "",
                "summary": rule.summary,
            }
        )
    columns = [
        ("PERMISSION", lambda row: row["permission"] or row["anyone"]),
        ("FRESH CODE", output.field("fresh_mfa")),
        ("CALL", output.field("method")),
    ]
    output.show(rows, form, columns)
