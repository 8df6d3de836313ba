"""What node and gateway on the control plane's own server need before they can start.

`appliance up` starts all three beside the root key, after whatever time: over a long holiday the
node's certificate ends, after a year the gateway's. Nobody could log in to renew them before the
control plane is up, and whoever may read the root key needs nobody's leave.

Rules kept here:
* it is done when it is asked for, by `appliance up`: a control plane that is started again by
  itself, or by systemd, lets nobody in;
* a node that was evicted is let in again too, under a new key: that is said, and recorded with the
  user of the operating system (docs/decisions/0025-beside-the-root-key.md);
* what holds is left alone;
* what cannot be done is said, and stops nobody else.

The attack: a copied node key that was noticed, and its node evicted: neither the old key nor a
token made before comes back. Called by `python -m appliance.control --prepare node|gateway`.
"""

from __future__ import annotations

import base64
import json
import os
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from appliance.control import joining, renewing
from appliance.control.auth import join_tokens
from appliance.control.config import ControlConfig
from appliance.control.opening import Opened
from appliance.control.services.nodes import EVICTED
from appliance.control.setup import NODE_NAME
from appliance.control.store import tables
from appliance.core import names
from appliance.core.errors import ApplianceError
from appliance.core.files import read_secret, write_durably
from appliance.core.identity import PrincipalKind
from appliance.crypto.certs import is_pair, not_after, not_before, peer_identity, serial_of

NODE, GATEWAY = "node", "gateway"
MACHINES = (NODE, GATEWAY)


@dataclass(frozen=True)
class Held:
    """What a node has to show: its id, and its certificate's time and serial number."""

    node: str
    begin: datetime
    end: datetime
    serial: str


def prepare(
    opened: Opened,
    settings: ControlConfig,
    machines: Iterable[str],
    clock: Callable[[], datetime],
) -> list[str]:
    """Make what the machines of this data directory lack; a sentence for each thing done or not.

    Args:
        opened: the data directory; the control plane does not serve yet.
        settings: its configuration.
        machines: some of `MACHINES`.
        clock: the time, aware.
    """
    steps = {NODE: _prepare_node, GATEWAY: _prepare_gateway}
    said = []
    for machine in machines:
        try:
            said += _write_authority(opened, machine)
            said.append(steps[machine](opened, settings, clock()))
        except (ApplianceError, OSError) as error:
            said.append(f"the {machine} of this server gets nothing new: {error}")
    return [sentence for sentence in said if sentence]


def why_join(held: Held | None, row: Any, now: datetime) -> str:  # noqa: ANN401  # a row of SQLAlchemy
    """Why a node needs a new identity; empty when it can call with the one it has.

    Args:
        held: what it has to show; None when that cannot be used.
        row: what the control plane knows of it; None when it knows nothing.
        now: aware time.
    """
    if row is not None and row.state == EVICTED:
        return "it was evicted (`appliance up --no-node` starts without it)"
    if held is None:
        return "it has no identity that can be used"
    if now >= held.end:
        return f"its certificate ended on {held.end:%Y-%m-%d %H:%M}Z"
    if now < held.begin:
        return f"its certificate begins on {held.begin:%Y-%m-%d %H:%M}Z, made under a wrong clock"
    if row is None or held.serial not in (row.certificate_serial, row.previous_serial):
        return "the control plane knows another certificate of it"
    return ""


def _prepare_node(opened: Opened, _: ControlConfig, now: datetime) -> str:
    """Let it join anew when it must; what was done."""
    try:
        identity_file, token_file = _files_of(opened.data.node)
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # its own process says what is wrong with its configuration
    held = _held(opened, identity_file)
    with opened.database.read() as state:
        token = join_tokens.look_up(state, opened.keyring.token_hmac, _text(token_file))
        known = token.node if token is not None else NODE_NAME
        node = held.node if held is not None else known
        row = state.first(tables.node.select().where(tables.node.c.id == node))
    why = why_join(held, row, now)
    waiting = token is not None and token.node == node and join_tokens.can_be_used(token, now)
    if not why or waiting:
        return ""
    by = {"by": f"appliance up, uid {os.getuid()}", "why": why}
    invitation = joining.invite(opened, node, now, by)
    write_durably(token_file, invitation.token.text.encode())
    return f"{names.node(node)} joins anew, with a new key: {why}"


def _prepare_gateway(opened: Opened, settings: ControlConfig, now: datetime) -> str:
    """Renew its certificate when that is over or soon will be; what was done."""
    why = renewing.why_renew(opened, settings, now)
    if not why:
        return ""
    by = {"by": f"appliance up, uid {os.getuid()}", "why": why}
    made = renewing.renew_in(opened, settings, now, by)
    return f"{made.gateway} has a new certificate until {made.expire_time:%Y-%m-%d}: {why}"


def _write_authority(opened: Opened, machine: str) -> list[str]:
    """Write the authority's certificate, which is in the keyring, where somebody took it away."""
    said = []
    for path in (opened.data.authority, opened.data.path / machine / "ca.pem"):
        if not path.exists():
            write_durably(path, opened.keyring.ca.certificate_pem, mode=0o644)
            said.append(f"{path} was missing and is written anew")
    return said


def _files_of(folder: Path) -> tuple[Path, Path]:
    """Identity and join token of the node whose configuration is in a folder."""
    values = tomllib.loads((folder / "node.toml").read_text(encoding="utf-8"))
    return folder / values["state"] / "identity.json", folder / values["join_token"]


def _held(opened: Opened, identity_file: Path) -> Held | None:
    ring = opened.keyring
    try:
        value = json.loads(read_secret(identity_file))
        certificate: bytes = value["certificate"].encode()
        if not is_pair(base64.b64decode(value["key"]), certificate):
            return None
        end = not_after(certificate)
        principal = peer_identity(
            certificate,
            ring.cluster_id,
            end - timedelta(seconds=1),
            need="client",
            ca_pem=ring.ca.certificate_pem,
        )
    except (ApplianceError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if principal.kind is not PrincipalKind.NODE:
        return None
    return Held(principal.id, not_before(certificate), end, serial_of(certificate))


def _text(token_file: Path) -> str:
    try:
        return read_secret(token_file).decode("ascii", "replace").strip()
    except (ApplianceError, OSError):
        return ""
