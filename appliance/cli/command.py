"""What every command that calls a server shares: its options, its session, its permissions.

A command names the RPCs it calls. The session calls no other one, so that `--show-permission` is
true. Nothing here imports gRPC before a command runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from appliance.cli import completing, listing
from appliance.cli.listing import Listing
from appliance.core.errors import NotFound

if TYPE_CHECKING:
    from appliance.cli.describing import Section
    from appliance.cli.session import CommandSession

Function = Callable[..., None]
FORMS = ("table", "wide", "json", "yaml", "name")
MAX_LINE = 200
"""Characters of the sentence that a list of commands shows."""
REPEATABLE = frozenset(
    {
        "BindingService.CreateBinding",
        "BindingService.DeleteBinding",
        "DatasetService.CreateDataset",
        "DatasetService.DeleteDataset",
        "DatasetService.DeleteDatasetVersion",
        "DatasetService.UpdateDataset",
        "DatasetService.UploadDatasetVersion",
        "EndpointService.CreateEndpoint",
        "CheckpointService.DeleteCheckpoint",
        "EndpointService.DeleteEndpoint",
        "EndpointService.StartEndpoint",
        "EndpointService.StopEndpoint",
        "EndpointService.UpdateEndpoint",
        "JobService.CancelJob",
        "JobService.CreateJob",
        "JobService.DeleteJob",
        "JobService.PauseJob",
        "JobService.ResumeJob",
        "JobService.UpdateJob",
        "ModelService.CreateModel",
        "ModelService.DeleteModel",
        "ModelService.DeleteModelVersion",
        "ModelService.UpdateModel",
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
        "ProjectService.DeleteProject",
        "ProjectService.UpdateProject",
        "ReportService.DeleteReport",
        "ServiceAccountService.CreateServiceAccount",
        "ServiceAccountService.DeleteServiceAccount",
        "ServiceAccountService.UpdateServiceAccount",
        "TokenizerService.DeleteTokenizer",
        "UserService.CreateUser",
        "UserService.DeleteUser",
        "UserService.EndUserSessions",
        "UserService.LockUser",
        "UserService.ResetFactor",
        "UserService.ResetPassword",
        "UserService.UnlockUser",
        "UserService.UpdateUser",
    }
)
"""The RPCs whose request has a `request_id`; written down, as reading it takes gRPC."""


@dataclass(frozen=True)
class Shared:
    """The options that every command has.

    Attributes:
        output: `table`, also where `wide` is asked for; `json`, `yaml` or `name`.
        wide: whether tables show all columns.
        listing: which rows of a list are wanted.
        sections: of `describe`; None for other commands.
    """

    output: str = "table"
    wide: bool = False
    listing: Listing = field(default_factory=Listing)
    sections: Sequence[Section] | None = None
    context: str = ""
    project: str = ""
    request_id: str = ""
    code_file: str | None = None
    methods: tuple[str, ...] = ()


class ServerCommand(click.Command):
    """A command that calls a server; `methods` are the RPCs it may call.

    `sections` are what a `describe` shows below the resource.
    """

    methods: tuple[str, ...] = ()

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.sections: list[Section] = []

    def get_short_help_str(self, limit: int = 45) -> str:
        """Its line in a list of commands: a whole sentence, which goes on in the next line."""
        del limit
        return super().get_short_help_str(MAX_LINE)


def command(
    name: str,
    *methods: str,
    group: click.Group | None = None,
    project: bool = False,
    limit: int = 0,
    **settings: Any,
) -> Callable[[Function], click.Command]:
    """Make a command of a function that takes a `CommandSession` and its own options.

    A command that calls nothing but List methods gets the options of lists; a `get` brings a
    `describe` along, to which `describing.section` adds.

    Args:
        name: what is typed.
        methods: the RPCs it may call, `JobService.CreateJob`.
        group: the noun it is added to.
        project: whether it takes `--project`, for short names.
        limit: rows that a list shows when nothing is said; 0 for all.
        settings: for `click.command`.
    """

    def decorate(function: Function) -> click.Command:
        own = list(getattr(function, "__click_params__", ()))
        made = _made(name, methods, function, project=project, limit=limit, **settings)
        if group is not None:
            group.add_command(made)
            if name == "get" and "describe" not in group.commands:
                function.__click_params__ = own  # type: ignore[attr-defined]  # click took them
                about = {"help": f"{made.help}\n\nWhat is related to it follows.", **settings}
                group.add_command(_made("describe", methods, function, project=project, **about))
        return made

    return decorate


def _made(
    name: str,
    methods: tuple[str, ...],
    function: Function,
    *,
    project: bool,
    limit: int = 0,
    **settings: Any,
) -> ServerCommand:
    lists = listing.is_list(methods)

    @functools.wraps(function)
    def run(**values: Any) -> None:
        from appliance.cli.session import CommandSession  # noqa: PLC0415 - imports gRPC

        form = values.pop("output")
        shared = Shared(
            output="table" if form == "wide" else form,
            wide=form == "wide",
            context=values.pop("context") or "",
            project=(values.pop("project") or "") if project else "",
            request_id=str(values.pop("request_id", None) or ""),
            code_file=values.pop("code_file"),
            methods=made.methods,
            listing=Listing(*(values.pop(each) for each in listing.NAMES)) if lists else Listing(),
            sections=made.sections if name == "describe" else None,
        )
        with CommandSession(shared) as session:
            _run(session, functools.partial(function, session, **values))

    made: ServerCommand = click.command(name, cls=ServerCommand, **settings)(run)
    made.methods = methods
    made.params += [
        *(listing.options(limit) if lists else []),
        *_shared_options(methods, project=project),
    ]
    completing.complete_parameters(made)
    return made


def _run(session: CommandSession, function: Callable[[], None]) -> None:
    try:
        if session.shared.listing.watch:
            from appliance.cli import watching  # noqa: PLC0415 - few commands watch

            watching.repeat(session, function)
        else:
            function()
    except NotFound as error:
        from appliance.cli.suggesting import add_hint  # noqa: PLC0415 - for mistakes alone

        add_hint(session, error)
        raise


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
            # Those of a section are added after its command was made.
            needed = getattr(ctx.command, "methods", methods)
            _show_permissions(needed, ctx.params.get("output") or "table")
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
