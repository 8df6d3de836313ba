"""`python -m appliance.control --config control.toml` serves.

`… init` makes a data directory; `--config control.toml join-token` lets one machine join;
`… who-joins` says who has to; `… unlock USER` and `… reset-factor USER` are for when nobody can log
in any more, `… accept-clock` and `… accept-state` for a start that is refused. `appliance up`
starts it with `--prepare node --prepare gateway`; what was done for them is a JSON object on
standard output.

Rules kept here: whatever it does, it first closes itself to core files and other processes, because
all of it holds keys; the password is read from standard input, never from an argument; what goes
wrong is one sentence on standard error and exit code 1, a wrong command line is 2.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import json
import logging
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from appliance.control.bootstrap import inviting, joining, rescuing, setup, starting
from appliance.control.bootstrap.opening import Opened
from appliance.control.config import ControlConfig
from appliance.control.main import ControlPlane
from appliance.core import config, log, names
from appliance.core.data_directory import DataDirectory
from appliance.core.errors import ApplianceError, InvalidInput
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.process import harden, settle_memory
from appliance.core.site import LOOPBACK, PORTS, Site

logger = logging.getLogger(__name__)

_RESCUES = {
    rescuing.UNLOCK: "let a person in again and forget the failed log-ins",
    rescuing.RESET_FACTOR: "take a person's authenticator away; the next log-in enrols another",
    rescuing.ACCEPT_CLOCK: "go on from the present time after the clock was ahead",
    rescuing.ACCEPT_STATE: "go on from a state that is older than the audit log, or was written by "
    "somebody else; sessions end",
}


def main(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code: 0, 1 when something is wrong, 2 for wrong usage."""
    os.umask(0o077)
    parsed = _parser().parse_args(arguments)
    try:
        harden()
        if parsed.command == "init":
            return _init(parsed)
        if parsed.config is None:
            raise InvalidInput("name the configuration with --config, or make one with `init`")
        if parsed.command is None:
            _configure_log()
        settings = _settings(parsed.config)
        if parsed.command == "join-token":
            return _join_token(settings, parsed)
        if parsed.command == "who-joins":
            return _who_joins(settings, parsed.readmit)
        if parsed.command in _RESCUES:
            return _rescue(settings, parsed)
        with (
            contextlib.suppress(KeyboardInterrupt),
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(_serve(settings, parsed.prepare))
    except ApplianceError as error:
        print(f"error: {error.message}", file=sys.stderr)  # noqa: T201  # said to whoever starts it
        return 1
    return 0


def _configure_log() -> None:
    log.configure("control")
    for library in ("alembic", "casbin"):
        logging.getLogger(library).setLevel(logging.WARNING)


def _settings(file: Path) -> ControlConfig:
    """The configuration; one that was lost from a data directory is said to be."""
    data = DataDirectory(file.absolute().parent)
    if file.name == data.config.name:
        data.check_complete([file.name])
    return config.load(ControlConfig, file)


async def _serve(settings: ControlConfig, machines: Sequence[str]) -> None:
    control = ControlPlane.build(settings, _now, functools.partial(_prepare, machines))
    settle_memory()
    try:
        await control.run()
    finally:
        await control.close()


def _prepare(machines: Sequence[str], opened: Opened) -> None:
    if machines:
        done = starting.prepare(opened, machines, _now)
        for each in done:
            logger.warning("%s", each)
        print(json.dumps({"prepared": done}), flush=True)  # noqa: T201  # for `appliance up`
        # It reads no more: what a library prints from now on belongs into the log.
        os.dup2(2, 1)


def _init(parsed: argparse.Namespace) -> int:
    ports = dict(PORTS)
    for choice in parsed.port:
        name, equals, number = choice.partition("=")
        if not equals or name not in ports or not number.isascii() or not number.isdigit():
            raise InvalidInput(
                f"--port {choice}: write NAME=NUMBER with one of {', '.join(sorted(ports))}"
            )
        ports[name] = int(number)
    site = Site(parsed.listen, parsed.address, ports)
    site.check_listen()
    plan = setup.InitPlan(
        data=parsed.data_dir,
        administrator=parsed.admin,
        site=site,
        node_name=parsed.node,
        gateway_name=parsed.gateway,
        devices=parsed.devices,
    )
    password = sys.stdin.readline().removesuffix("\n")
    made = setup.init(plan, password)
    print(  # noqa: T201  # the answer of the command
        json.dumps(
            {
                "data": str(made.data),
                "cluster_id": made.cluster_id,
                "ca_fingerprint": made.ca_fingerprint,
            }
        )
    )
    return 0


def _join_token(settings: ControlConfig, parsed: argparse.Namespace) -> int:
    if parsed.hosts and parsed.node:
        raise InvalidInput("--host is for gateways: a node says itself where it is reached")
    kind = PrincipalKind.NODE if parsed.node else PrincipalKind.GATEWAY
    machine = Principal(kind, names.check_id(parsed.node or parsed.gateway, kind.path))
    made = joining.make(settings, machine, _now, parsed.hosts, readmit=parsed.readmit)
    facts = {"token": made.token.text, "ca_fingerprint": made.ca_fingerprint}
    print(json.dumps(facts))  # noqa: T201  # the answer of the command
    return 0


def _who_joins(settings: ControlConfig, readmit: Sequence[str]) -> int:
    try:
        asked = json.load(sys.stdin)
        held = {_machine(name): (pem or "").encode() or None for name, pem in asked.items()}
    except (ValueError, AttributeError) as error:
        raise InvalidInput(
            "standard input: write a JSON object of machine and certificate, such as "
            '{"nodes/gpu-1": "-----BEGIN…", "gateways/gateway-1": ""}'
        ) from error
    found = inviting.who_joins(settings, held, _now(), [_machine(name) for name in readmit])
    facts: dict[str, dict[str, str]] = {inviting.JOINS: {}, inviting.FINE: {}, inviting.REFUSED: {}}
    for machine, (what, why) in found.items():
        facts[what][machine.name] = why
    print(json.dumps(facts))  # noqa: T201  # the answer of the command
    return 0


def _machine(name: str) -> Principal:
    """A node or a gateway by its name. Raises InvalidInput."""
    found = names.Name.parse(name, "node", "gateway")
    kinds = {kind.collection: kind for kind in (PrincipalKind.NODE, PrincipalKind.GATEWAY)}
    return Principal(kinds[name.partition("/")[0]], found.id)


def _rescue(settings: ControlConfig, parsed: argparse.Namespace) -> int:
    facts: dict[str, object] = {"done": parsed.command}
    if parsed.command == rescuing.ACCEPT_CLOCK:
        ahead = rescuing.accept_clock(settings, _now)
        facts |= {"last_record": ahead.isoformat(), "clock": _now().isoformat()}
    elif parsed.command == rescuing.ACCEPT_STATE:
        facts |= dataclasses.asdict(rescuing.accept_state(settings, _now))
    else:
        change = rescuing.unlock if parsed.command == rescuing.UNLOCK else rescuing.reset_factor
        change(settings, parsed.user, _now)
        facts["user"] = names.user(parsed.user)
    print(json.dumps(facts))  # noqa: T201  # the answer of the command
    return 0


def _now() -> datetime:
    return datetime.now(UTC)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m appliance.control", description="The control plane."
    )
    parser.add_argument("--config", type=Path, help="control.toml in the data directory")
    parser.add_argument(
        "--prepare",
        action="append",
        choices=starting.MACHINES,
        default=[],
        help="before it serves, give the node or the gateway of this server what it needs to call",
    )
    commands = parser.add_subparsers(dest="command")
    _init_options(commands.add_parser("init", help="make the data directory of a new appliance"))
    join = commands.add_parser(
        "join-token", help="make a token with which one server may join; the control plane is down"
    )
    whom = join.add_mutually_exclusive_group(required=True)
    whom.add_argument("--node", help="id of the node")
    whom.add_argument("--gateway", help="id of the gateway")
    join.add_argument(
        "--host",
        action="append",
        default=[],
        dest="hosts",
        help="DNS name or address under which clients reach the gateway; can be repeated",
    )
    join.add_argument(
        "--readmit",
        action="store_true",
        help="also when the machine was evicted: it may come back",
    )
    who = commands.add_parser(
        "who-joins", help="say which machines need a join token; their certificates come as JSON"
    )
    who.add_argument(
        "--readmit",
        action="append",
        default=[],
        metavar="NAME",
        help="nodes/ID or gateways/ID that may come back after an eviction; can be repeated",
    )
    for name, what in _RESCUES.items():
        rescue = commands.add_parser(name, help=f"{what}; the control plane is down")
        if name in {rescuing.UNLOCK, rescuing.RESET_FACTOR}:
            rescue.add_argument("user", metavar="USER", help="id of the person")
    return parser


def _init_options(init: argparse.ArgumentParser) -> None:
    init.add_argument("--data-dir", type=Path, required=True)
    init.add_argument("--admin", required=True, help="id of the first administrator")
    init.add_argument(
        "--password-stdin",
        action="store_true",
        required=True,
        help="read the administrator's password from the first line of standard input",
    )
    init.add_argument("--listen", default=LOOPBACK, help="host to listen on")
    init.add_argument("--address", help="host under which others reach it; default: --listen")
    init.add_argument("--node", default="node-1", help="id of the node on this server")
    init.add_argument("--gateway", default="gateway-1", help="id of the gateway on this server")
    init.add_argument(
        "--devices", type=int, default=0, help="devices the node offers; 0: all it has"
    )
    init.add_argument(
        "--port",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help=f"another port than {', '.join(f'{n}={p}' for n, p in PORTS.items())}",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
