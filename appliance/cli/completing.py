"""What a shell completes: names of resources, projects, contexts, paths.

An argument or option is completed by its metavar: `JOB` by the jobs of the project, `P` by the
projects, `FILE` by paths. Rules kept here: who is not logged in gets nothing, and nothing is asked;
a server that does not answer within a second is left alone; the id of something that is to be made
is not completed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from appliance.core.names import ACCOUNT_MARK, PATTERNS, Name

if TYPE_CHECKING:
    from appliance.cli.command import Shared
    from appliance.cli.session import CommandSession

SECONDS = 1.0
"""For a server to answer; a person waits."""
MOST = 500
LISTS = {
    "user": ("UserService.ListUsers", "users"),
    "serviceAccount": ("ServiceAccountService.ListServiceAccounts", "service_accounts"),
    "role": ("RoleService.ListRoles", "roles"),
    "node": ("NodeService.ListNodes", "nodes"),
    "gateway": ("GatewayService.ListGateways", "gateways"),
    "project": ("ProjectService.ListProjects", "projects"),
    "dataset": ("DatasetService.ListDatasets", "datasets"),
    "datasetVersion": ("DatasetService.ListDatasetVersions", "versions"),
    "upload": ("UploadService.ListUploads", "uploads"),
    "tokenizer": ("TokenizerService.ListTokenizers", "tokenizers"),
    "report": ("ReportService.ListReports", "reports"),
    "model": ("ModelService.ListModels", "models"),
    "modelVersion": ("ModelService.ListModelVersions", "versions"),
    "job": ("JobService.ListJobs", "jobs"),
    "checkpoint": ("CheckpointService.ListCheckpoints", "checkpoints"),
    "endpoint": ("EndpointService.ListEndpoints", "endpoints"),
    "tombstone": ("TombstoneService.ListTombstones", "tombstones"),
}
"""Kind of resource -> the call that lists it, and the field of the answer."""
PARENTS = {"datasetVersion": "dataset", "modelVersion": "model", "checkpoint": "job"}
"""Kinds that are listed below another one: `docs/3`."""
METAVARS = {
    "JOB": "job",
    "JOB/CHECKPOINT": "checkpoint",
    "CHECKPOINT": "checkpoint",
    "DATASET": "dataset",
    "DATASET/VERSION": "datasetVersion",
    "DATASET[/VERSION]": "datasetVersion",
    "MODEL": "model",
    "MODEL/VERSION": "modelVersion",
    "MODEL[/VERSION]": "modelVersion",
    "TOKENIZER": "tokenizer",
    "REPORT": "report",
    "ENDPOINT": "endpoint",
    "TOMBSTONE": "tombstone",
    "UPLOAD": "upload",
    "PROJECT": "project",
    "P": "project",
    "USER": "user",
    "U": "user",
    "ACCOUNT": "serviceAccount",
    "ROLE": "role",
    "NODE": "node",
    "GATEWAY": "gateway",
}
"""Metavar -> kind of resource."""
_OF_CONTEXT = ("use", "show", "remove")
"""Commands of `context`, whose argument is one."""
_PATHS = ("FILE", "FOLDER", "PATH", "PATH...")


class CompletedText(click.ParamType[str]):
    """Text that a shell completes."""

    name = "text"

    def __init__(self, items: Callable[[click.Context, str], list[CompletionItem]]) -> None:
        self._items = items

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it is."""
        return str(click.STRING.convert(value, param, ctx))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """What it can become."""
        del param
        return self._items(ctx, incomplete)


def complete_parameters(command: click.Command) -> None:
    """Let a shell complete the parameters of a command by their metavars."""
    makes = command.name == "create" or _is_kind(command)
    for param in command.params:
        if param.type is not click.STRING:
            continue
        of_new = makes and isinstance(param, click.Argument)
        if param.metavar in METAVARS and not of_new:
            param.type = CompletedText(_names(METAVARS[param.metavar]))
        elif param.metavar in _PATHS:
            param.type = PATH
        elif param.metavar == "NAME" and ("--context" in param.opts or command.name in _OF_CONTEXT):
            param.type = CONTEXT


def _is_kind(command: click.Command) -> bool:
    from appliance.kinds import KINDS  # noqa: PLC0415 - it is light

    return command.name in KINDS


def _names(kind: str) -> Callable[[click.Context, str], list[CompletionItem]]:
    def items(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # Whatever goes wrong, a shell is no place to say it.
        with contextlib.suppress(Exception):
            return [CompletionItem(each) for each in names(ctx.params, kind, incomplete)]
        return []

    return items


def names(given: dict[str, Any], kind: str, incomplete: str) -> list[str]:
    """The names of a kind that begin with what was typed, as they are typed.

    Args:
        given: parameters that stand before it on the line.
        kind: of `LISTS`.
        incomplete: what was typed of it.

    Raises:
        ApplianceError: they cannot be listed now.
    """
    if incomplete.startswith(("projects/", "serviceAccounts/", "users/", "nodes/", "gateways/")):
        return []
    from appliance.cli.command import Shared  # noqa: PLC0415 - it uses this module

    shared = Shared(context=given.get("context") or "", project=given.get("project") or "")
    with lister(shared) as session:
        if not session.token:
            return []
        if kind not in PARENTS:
            return _starting(list_names(session, kind, _parent(session, kind)), incomplete)
        outer = PARENTS[kind]
        above, slash, _ = incomplete.partition("/")
        found = [above]
        if not slash:
            found = _starting(list_names(session, outer, session.parent), above)
        if len(found) != 1:
            return [f"{each}/" for each in found]
        return _starting(list_names(session, kind, session.name(outer, found[0])), incomplete)


def _parent(session: CommandSession, kind: str) -> str:
    """The project of a kind that is in one."""
    inside = kind == "serviceAccount" or PATTERNS[kind].startswith("projects/{project}/")
    return session.parent if inside else ""


def lister(shared: Shared) -> CommandSession:
    """A session of the same context that may list, and nothing else."""
    from appliance.cli.session import CommandSession  # noqa: PLC0415 - imports gRPC

    return CommandSession(replace(shared, methods=tuple(rpc for rpc, _ in LISTS.values())))


def list_names(session: CommandSession, kind: str, parent: str) -> list[str]:
    """The short names of a kind that the caller may see, `MOST` at most; none of other kinds.

    Args:
        session: a `lister`.
        kind: a key of `names.PATTERNS`.
        parent: name of what they are in; empty for those of the whole appliance.

    Raises:
        ApplianceError: they cannot be listed now.
    """
    from appliance.cli.output import short_name  # noqa: PLC0415 - options do without

    if kind not in LISTS:
        return []
    rpc, field = LISTS[kind]
    above = {"parent": parent} if parent else {}
    answer = session.call(rpc, timeout=SECONDS, page_size=MOST, **above)
    return [short_name(each.name) for each in getattr(answer, field)]


def parent_of(name: Name) -> str:
    """In what a resource is listed: its parent, or the project of a service account."""
    if name.kind == "serviceAccount":
        project = name.id.partition(ACCOUNT_MARK)[0]
        return f"projects/{project}"
    return str(name.parent or "")


def list_command(name: Name) -> str:
    """What to type to see what there is instead of a name; nothing for kinds without a list."""
    if name.kind not in LISTS:
        return ""
    outer = PARENTS.get(name.kind)
    verb = "versions" if name.kind.endswith("Version") else "list"
    noun = name.kind if verb == "list" else outer or ""
    words = ["appliance", "service-account" if noun == "serviceAccount" else noun, verb]
    words += [name.ids[1]] if outer else []
    project = parent_of(name).split("/")[1:2] if parent_of(name).startswith("projects/") else []
    words += ["--project", *project] if project else []
    return f"`{' '.join(words)}` shows what there is"


def _starting(found: list[str], incomplete: str) -> list[str]:
    return [each for each in found if each.startswith(incomplete)]


def _contexts(_: click.Context, incomplete: str) -> list[CompletionItem]:
    from appliance.client.profiles import Profiles  # noqa: PLC0415 - only when it is asked for

    with contextlib.suppress(Exception):
        names = [profile.name for profile in Profiles().all()]
        return [CompletionItem(each) for each in _starting(names, incomplete)]
    return []


PATH = CompletedText(lambda _, incomplete: [CompletionItem(incomplete, type="file")])
"""A path, which the shell completes itself."""
CONTEXT = CompletedText(_contexts)
"""The name of a context."""
