"""`appliance endpoint`: serve model versions with replicas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from appliance.cli import updating
from appliance.cli.command import command as make
from appliance.cli.describing import Rows, section
from appliance.cli.fields import Field, message_of, options
from appliance.cli.following import changes, wait_options
from appliance.cli.live import Waiting
from appliance.cli.output import field, json_text, last, plain, short, short_name, state, wide
from appliance.cli.updating import etag_option
from appliance.core.errors import FailedPrecondition, NotFound

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

LIST = "EndpointService.ListEndpoints"
READY, STOPPING, FAILED = "STATE_READY", "STATE_STOPPING", "STATE_FAILED"
DEGRADED, STOPPED = "STATE_DEGRADED", "STATE_STOPPED"


def _ready(row: dict[str, Any]) -> str:
    replicas = row["replica_status"]
    return f"{sum(each['state'] == READY for each in replicas)}/{row['replicas'] or 1}"


COLUMNS = [
    ("ENDPOINT", last()),
    ("STATE", state()),
    ("READY", _ready),
    ("MODEL", short("model")),
    wide("DEVICES EACH", field("tensor_parallel")),
    ("CREATED", field("create_time")),
    ("WHY", field("state_reason")),
]

MESSAGE = "serving.v1.endpoint.Endpoint"
SHAPE = (
    Field("model", "modelVersion", "Version to serve.", True),
    Field("replicas", int, "Workers that answer, each with the whole model."),
    Field("tensor_parallel", int, "Devices each replica is split over."),
    Field(
        "max_sequence_length",
        int,
        "Longest prompt and answer together, in tokens, at most the model's context.",
    ),
    Field("cache_bytes", int, "Memory for the key-value cache of each device."),
    Field(
        "allow_downtime",
        bool,
        "Let the last replica of a version stop before one of the next answers.",
    ),
)
REPLICAS = [
    ("REPLICA", field("id")),
    ("STATE", state()),
    ("NODE", last("node")),
    ("STARTED", field("start_time")),
    ("RESTARTS", field("restarts")),
    ("GENERATION", field("generation")),
    ("MODEL", short("model")),
    ("WHY", field("state_reason")),
]

command = click.Group("endpoint", help="Serve models.")


@make(
    "create",
    "EndpointService.CreateEndpoint",
    "EndpointService.WatchEndpoint",
    group=command,
    project=True,
)
@click.argument("endpoint_id", metavar="ENDPOINT")
@options(MESSAGE, SHAPE)
@wait_options
def create(
    session: CommandSession,
    endpoint_id: str,
    *,
    wait: bool,
    timeout: float | None,
    **shape: Any,
) -> None:
    """Start to serve a model version."""
    made = session.call(
        "EndpointService.CreateEndpoint",
        parent=session.parent,
        endpoint_id=endpoint_id,
        endpoint=message_of(SHAPE, shape, session.name),
    )
    _show_ready(session, made.name, plain(made), wait=wait, timeout=timeout)


@make("get", "EndpointService.GetEndpoint", group=command, project=True)
@click.argument("name", metavar="ENDPOINT")
def get(session: CommandSession, name: str) -> None:
    """Show one endpoint with its replicas."""
    session.show(session.call("EndpointService.GetEndpoint", name=session.name("endpoint", name)))


@section(command, "Replica status")
def replicas_of(_: CommandSession, found: dict[str, Any]) -> Rows:
    """Where its replicas are, and of which version."""
    return found["replica_status"], REPLICAS


@make("list", LIST, group=command, project=True)
def list_(session: CommandSession) -> None:
    """List the endpoints of a project."""
    rows = session.rows(LIST, "endpoints", parent=session.parent)
    session.show(rows, COLUMNS)


@make("watch", "EndpointService.WatchEndpoint", group=command, project=True)
@click.argument("name", metavar="ENDPOINT")
def watch(session: CommandSession, name: str) -> None:
    """Print each change of an endpoint until it is deleted; Ctrl-C ends the watching alone."""
    for row in _follow(session, session.name("endpoint", name), None):
        as_json = session.shared.output == "json"
        click.echo(json_text(row) if as_json else _line(row))


@make(
    "update",
    "EndpointService.UpdateEndpoint",
    "EndpointService.WatchEndpoint",
    group=command,
    project=True,
)
@click.argument("name", metavar="ENDPOINT")
@click.option("--model", metavar="MODEL/VERSION", help="Version to serve from now on.")
@click.option("--replicas", type=int, help="Workers that answer.")
@click.option("--tensor-parallel", type=int, help="Devices each replica is split over.")
@click.option("--max-sequence-length", type=int, help="Longest prompt and answer, in tokens.")
@click.option("--cache-bytes", type=int, help="Memory for the cache of each device.")
@click.option(
    "--allow-downtime/--no-allow-downtime",
    default=None,
    help="Whether the last replica of a version may stop before one of the next answers.",
)
@etag_option()
@wait_options
def update(
    session: CommandSession,
    name: str,
    *,
    etag: str,
    wait: bool,
    timeout: float | None,
    **given: Any,
) -> None:
    """Serve another version, or with other replicas; those there answer until others do."""
    full = session.name("endpoint", name)
    if given["model"] is not None:
        given["model"] = session.name("modelVersion", given["model"])
    rpc = "EndpointService.UpdateEndpoint"
    made = plain(updating.update(session, rpc, "endpoint", full, etag, **given))
    final = _until(session, full, timeout, _is_updated) if wait else made
    session.show(final, COLUMNS)
    if wait and final["state"] not in {READY, STOPPED}:
        raise FailedPrecondition(f"{full} is not updated: {final['state_reason']}")


@make(
    "stop",
    "EndpointService.StopEndpoint",
    "EndpointService.WatchEndpoint",
    group=command,
    project=True,
)
@click.argument("name", metavar="ENDPOINT")
@etag_option()
@wait_options
def stop(
    session: CommandSession, name: str, *, etag: str, wait: bool, timeout: float | None
) -> None:
    """Let the replicas finish and free their devices; the endpoint keeps its name and shape."""
    full = session.name("endpoint", name)
    made = plain(session.call("EndpointService.StopEndpoint", name=full, etag=etag))
    ends = {STOPPED}
    final = _until(session, full, timeout, lambda row: row["state"] in ends) if wait else made
    session.show(final, COLUMNS)


@make(
    "start",
    "EndpointService.StartEndpoint",
    "EndpointService.WatchEndpoint",
    group=command,
    project=True,
)
@click.argument("name", metavar="ENDPOINT")
@etag_option()
@wait_options
def start(
    session: CommandSession, name: str, *, etag: str, wait: bool, timeout: float | None
) -> None:
    """Start the replicas of an endpoint that was stopped."""
    full = session.name("endpoint", name)
    made = plain(session.call("EndpointService.StartEndpoint", name=full, etag=etag))
    _show_ready(session, full, made, wait=wait, timeout=timeout)


@make(
    "delete",
    "EndpointService.DeleteEndpoint",
    "EndpointService.WatchEndpoint",
    group=command,
    project=True,
)
@click.argument("name", metavar="ENDPOINT")
@etag_option()
@wait_options
def delete(
    session: CommandSession, name: str, *, etag: str, wait: bool, timeout: float | None
) -> None:
    """Drain the replicas and take an endpoint down."""
    full = session.name("endpoint", name)
    session.call("EndpointService.DeleteEndpoint", name=full, etag=etag)
    if wait:
        with Waiting() as waiting:
            for row in _follow(session, full, timeout):
                waiting.tell(_line(row))
    else:
        click.echo(
            f"{full} goes when its answers have ended; until then `appliance endpoint get "
            f"{short_name(full)}` shows it",
            err=True,
        )
    session.show({"name": full, "deleted": wait})


def _show_ready(
    session: CommandSession,
    name: str,
    row: dict[str, Any],
    *,
    wait: bool,
    timeout: float | None,
) -> None:
    """Show an endpoint, if told so when it answers. Raises FailedPrecondition when it does not."""
    ends = {READY, STOPPING, FAILED, STOPPED}
    final = _until(session, name, timeout, lambda row: row["state"] in ends) if wait else row
    session.show(final, COLUMNS)
    if wait and final["state"] != READY:
        raise FailedPrecondition(
            f"{name} cannot be served: {final['state_reason'] or state()(final)}"
        )


def _is_updated(row: dict[str, Any]) -> bool:
    """Whether an update is over: it is done, or was given up for now."""
    if row["state"] != DEGRADED:
        return row["state"] in {READY, STOPPING, FAILED, STOPPED}
    # Where older ones answer because the new version does not start.
    return any(
        each["state"] == READY and each["generation"] != row["generation"]
        for each in row["replica_status"]
    )


def _until(
    session: CommandSession,
    name: str,
    timeout: float | None,
    is_over: Callable[[dict[str, Any]], bool],
) -> dict[str, Any]:
    with Waiting() as waiting:
        for row in _follow(session, name, timeout):
            waiting.tell(_line(row))
            if is_over(row):
                return row
    raise NotFound(f"{name} was deleted while it was waited for")


def _follow(session: CommandSession, name: str, timeout: float | None) -> Iterator[dict[str, Any]]:
    """Each change of an endpoint; the end of it is the end of the endpoint."""
    try:
        for endpoint in changes(session, "EndpointService.WatchEndpoint", name, timeout):
            yield plain(endpoint)
    except NotFound:
        return


def _line(row: dict[str, Any]) -> str:
    replicas = ", ".join(f"{each['id']} {state()(each)}" for each in row["replica_status"])
    why = f": {row['state_reason']}" if row["state_reason"] else ""
    return f"{last()(row)} {state()(row)}{why}  [{replicas}]"
