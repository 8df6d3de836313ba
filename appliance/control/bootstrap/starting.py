"""What node and gateway on the control plane's own server need before they can start.

`appliance up` starts all three beside the root key, after whatever time: over a long holiday both
certificates end. Nobody could log in to let them join before the control plane is up, and whoever
may read the root key needs nobody's leave.

Rules kept here:
* it is done when it is asked for, by `appliance up`: a control plane that is started again by
  itself, or by systemd, lets nobody in;
* a machine that was evicted is let in again too, under a new key: that is said, and recorded with
  the user of the operating system (docs/decisions/0025-beside-the-root-key.md);
* what holds is left alone;
* what cannot be done is said, and stops nobody else.

The attack: a copied key that was noticed, and its machine evicted: neither the old key nor a
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

from appliance.control.auth import join_tokens
from appliance.control.bootstrap import joining
from appliance.control.bootstrap.opening import Opened
from appliance.control.bootstrap.setup import GATEWAY_NAME, NODE_NAME
from appliance.control.services.fleet.certificates import EVICTED, KINDS, counting
from appliance.control.store.database import Reading
from appliance.core.errors import ApplianceError
from appliance.core.files import read_secret, write_durably
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.reading import (
    is_pair,
    not_after,
    not_before,
    peer_identity,
    serial_of,
)
from appliance.machine.identity import FILE

NODE, GATEWAY = "node", "gateway"
MACHINES = (NODE, GATEWAY)


@dataclass(frozen=True)
class HeldIdentity:
    """What a machine has to show: its id, and its certificate's time and serial number."""

    id: str
    begin: datetime
    end: datetime
    serial: str


def prepare(
    opened: Opened,
    machines: Iterable[str],
    clock: Callable[[], datetime],
) -> list[str]:
    """Make what the machines of this data directory lack; a sentence for each thing done or not.

    Args:
        opened: the data directory; the control plane does not serve yet.
        machines: some of `MACHINES`.
        clock: the time, aware.
    """
    said = []
    for machine in machines:
        try:
            said += _write_authority(opened, machine)
            said.append(_invite(opened, _KINDS[machine], clock()))
        except (ApplianceError, OSError) as error:
            said.append(f"the {machine} of this server gets nothing new: {error}")
    return [sentence for sentence in said if sentence]


def why_join(held: HeldIdentity | None, row: Any, now: datetime) -> str:  # noqa: ANN401  # a row of SQLAlchemy
    """Why a machine needs a new identity; empty when it can call with the one it has.

    Args:
        held: what it has to show; None when that cannot be used.
        row: what the control plane knows of it; None when it knows nothing.
        now: aware time.
    """
    if row is not None and row.state == EVICTED:
        return "it was evicted"
    if held is None:
        return "it has no identity that can be used"
    if now >= held.end:
        return f"its certificate ended on {held.end:%Y-%m-%d %H:%M}Z"
    if now < held.begin:
        return f"its certificate begins on {held.begin:%Y-%m-%d %H:%M}Z, made under a wrong clock"
    if row is None or held.serial not in counting(
        row.certificate_serial, row.previous_serial, used=row.certificate_used
    ):
        return "the control plane knows another certificate of it"
    return ""


def _invite(opened: Opened, kind: PrincipalKind, now: datetime) -> str:
    """Let a machine of this data directory join anew when it must; what was done."""
    try:
        files = _FILES[kind](opened.data.path / kind.path)
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # its own process says what is wrong with its configuration
    held = _held(opened, kind, files)
    table = KINDS[kind].table
    with opened.database.read() as state:
        token = join_tokens.look_up(state, opened.keyring.token_hmac, _text(files.token))
        if token is not None and join_tokens.owner(token).kind is not kind:
            token = None  # one for another machine, put here by mistake
        known = token.machine if token is not None else _known(state, kind)
        machine = Principal(kind, held.id if held is not None else known)
        row = state.first(table.select().where(table.c.id == machine.id))
    why = why_join(held, row, now)
    waiting = (
        token is not None
        and join_tokens.owner(token) == machine
        and join_tokens.can_be_used(token, now)
    )
    if not why or waiting:
        return ""
    by = {"by": f"appliance up, uid {os.getuid()}", "why": why}
    invitation = joining.invite(opened, machine, now, by)
    write_durably(files.token, invitation.token.text.encode())
    if row is not None and row.state == EVICTED and kind is PrincipalKind.NODE:
        why += " (`appliance up --no-node` starts without it)"
    return f"{machine.name} joins anew, with a new key: {why}"


def _known(state: Reading, kind: PrincipalKind) -> str:
    """Id of the machine of this data directory, which has nothing that names it."""
    table = KINDS[kind].table
    rows = state.all(table.select().where(table.c.state != EVICTED))
    if kind is PrincipalKind.GATEWAY and len(rows) == 1:
        return str(rows[0].id)
    return NODE_NAME if kind is PrincipalKind.NODE else GATEWAY_NAME


def _write_authority(opened: Opened, machine: str) -> list[str]:
    """Write the authority's certificate, which is in the keyring, where somebody took it away."""
    said = []
    for path in (opened.data.authority, opened.data.path / machine / "ca.pem"):
        if not path.exists():
            write_durably(path, opened.keyring.ca.certificate_pem, mode=0o644)
            said.append(f"{path} was missing and is written anew")
    return said


@dataclass(frozen=True)
class _Files:
    """Where a machine keeps its identity, and looks for a join token.

    `key` and `certificate` are the two files that a gateway had before it kept an identity.
    """

    identity: Path
    token: Path
    key: Path | None = None
    certificate: Path | None = None


def _node_files(folder: Path) -> _Files:
    values = tomllib.loads((folder / "node.toml").read_text(encoding="utf-8"))
    return _Files(folder / values["state"] / FILE, folder / values["join_token"])


def _gateway_files(folder: Path) -> _Files:
    values = tomllib.loads((folder / "gateway.toml").read_text(encoding="utf-8"))
    before = [folder / values[name] if name in values else None for name in ("key", "certificate")]
    state, token = values.get("state", "state"), values.get("join_token", "join.token")
    return _Files(folder / state / FILE, folder / token, *before)


def _held(opened: Opened, kind: PrincipalKind, files: _Files) -> HeldIdentity | None:
    """What a machine has to show, as of its last moment; None for nothing that can be used."""
    ring = opened.keyring
    try:
        key, certificate = _pair(files)
        if not is_pair(key, certificate):
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
    if principal.kind is not kind:
        return None
    return HeldIdentity(principal.id, not_before(certificate), end, serial_of(certificate))


def _pair(files: _Files) -> tuple[bytes, bytes]:
    """Key and certificate of an identity, or of the files of before."""
    if not files.identity.exists() and files.key is not None and files.certificate is not None:
        return read_secret(files.key), files.certificate.read_bytes()
    value = json.loads(read_secret(files.identity))
    return base64.b64decode(value["key"]), value["certificate"].encode()


def _text(token_file: Path) -> str:
    try:
        return read_secret(token_file).decode("ascii", "replace").strip()
    except (ApplianceError, OSError):
        return ""


_KINDS = {NODE: PrincipalKind.NODE, GATEWAY: PrincipalKind.GATEWAY}
_FILES: dict[PrincipalKind, Callable[[Path], _Files]] = {
    PrincipalKind.NODE: _node_files,
    PrincipalKind.GATEWAY: _gateway_files,
}
