"""`appliance endpoint`: serve model versions with replicas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.command import command as make
from appliance.cli.fields import Field, message_of, options
from appliance.cli.following import changes, wait_options
from appliance.cli.live import Waiting
from appliance.cli.output import field, json_text, last, plain, short, state, wide
from appliance.core.errors import FailedPrecondition, NotFound

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

LIST = "EndpointService.ListEndpoints"
READY, STOPPING, FAILED = "STATE_READY", "STATE_STOPPING", "STATE_FAILED"


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
)

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
    final = _until_ready(session, made.name, timeout) if wait else plain(made)
    session.show(final, COLUMNS)
    if wait and final["state"] != READY:
        raise FailedPrecondition(
            f"{made.name} cannot be served: {final['state_reason'] or state()(final)}"
        )


@make("get", "EndpointService.GetEndpoint", group=command, project=True)
@click.argument("name", metavar="ENDPOINT")
def get(session: CommandSession, name: str) -> None:
    """Show one endpoint with its replicas."""
    session.show(session.call("EndpointService.GetEndpoint", name=session.name("endpoint", name)))


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
    "delete",
    "EndpointService.DeleteEndpoint",
    "EndpointService.WatchEndpoint",
    group=command,
    project=True,
)
@click.argument("name", metavar="ENDPOINT")
@wait_options
def delete(session: CommandSession, name: str, *, wait: bool, timeout: float | None) -> None:
    """Drain the replicas and take an endpoint down."""
    full = session.name("endpoint", name)
    session.call("EndpointService.DeleteEndpoint", name=full)
    if wait:
        with Waiting() as waiting:
            for row in _follow(session, full, timeout):
                waiting.tell(_line(row))
    session.show({"name": full, "deleted": wait})


def _until_ready(session: CommandSession, name: str, timeout: float | None) -> dict[str, Any]:
    with Waiting() as waiting:
        for row in _follow(session, name, timeout):
            waiting.tell(_line(row))
            if row["state"] in (READY, STOPPING, FAILED):
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
