"""`init`: make the data directory of a new appliance, all of it or nothing.

Rules kept here:
* everything is made in a hidden folder beside the target and renamed into place at the end, so a
  full disk, a crash or a bad password leaves nothing half-made and an existing appliance untouched;
* a folder that holds an appliance, or anything else, is refused;
* folders are 0700, keys and tokens 0600; the password comes as an argument of a function, never of
  a command line.

Called by `python -m appliance.control init`, which the command runs.
"""

from __future__ import annotations

import contextlib
import errno
import json
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from appliance.control.audit.log import AuditLog
from appliance.control.audit.record import AuditEntry
from appliance.control.auth import join_tokens
from appliance.control.auth.passwords import Passwords
from appliance.control.auth.policy import PolicyStore
from appliance.control.auth.roles import Roles
from appliance.control.auth.rules import RoleLink
from appliance.control.auth.scopes import EVERYWHERE, PLATFORM
from appliance.control.auth.totp import Totp
from appliance.control.config import audit_origin
from appliance.control.events import Events
from appliance.control.services.access.bindings import ADMINISTRATOR, Bindings
from appliance.control.services.access.users import Users
from appliance.control.services.common.change import Changes
from appliance.control.store import migrate, tables
from appliance.control.store.database import Database
from appliance.control.store.rows import RowMacs
from appliance.core import names
from appliance.core.data_directory import DataDirectory
from appliance.core.errors import Exhausted, FailedPrecondition
from appliance.core.files import make_private_dir, sync_dir, write_durably
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.site import Site
from appliance.crypto.certs import make_csr, new_private_key
from appliance.crypto.keys import Keyring, RootKey
from appliance.crypto.reading import not_after, serial_of
from appliance.machine.identity import FILE, Identity

FIRST_JOIN = timedelta(hours=24)
NODE_NAME, GATEWAY_NAME = "node-1", "gateway-1"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)
class InitPlan:
    """What `init` is asked for.

    Args:
        data: the folder to make.
        administrator: id of the first administrator.
        site: where it listens, and under which host others reach it.
        node_name, gateway_name: ids of the node and the gateway on this server.
        devices: devices the node offers; 0: all it has.
    """

    data: Path
    administrator: str
    site: Site = field(default_factory=Site)
    node_name: str = NODE_NAME
    gateway_name: str = GATEWAY_NAME
    devices: int = 0


@dataclass(frozen=True)
class NewAppliance:
    """What `init` has made."""

    data: Path
    cluster_id: str
    ca_fingerprint: str


def init(plan: InitPlan, password: str) -> NewAppliance:
    """Make the data directory.

    Raises:
        AlreadyExists: there is an appliance already.
        FailedPrecondition: the folder holds something else.
        InvalidInput: an id, a host or the password is refused.
        Exhausted: the disk is full. In every case nothing was made.
    """
    names.check_id(plan.administrator, "admin")
    names.check_id(plan.node_name, "node")
    names.check_id(plan.gateway_name, "gateway")
    plan.site.check_hosts()
    target = plan.data.absolute()
    DataDirectory(target).check_unused()
    with _beside(target) as folder:
        made = _fill(plan, DataDirectory(folder), password)
        folder.rename(target)
    sync_dir(target.parent)
    return NewAppliance(target, made.cluster_id, made.ca.fingerprint())


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A private folder beside the target, gone when the work in it fails."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = make_private_dir(target.parent / f".{target.name}.{secrets.token_hex(8)}")
    except OSError as error:
        raise _unusable(target, error) from error
    try:
        yield folder
    except OSError as error:
        raise _unusable(target, error) from error
    except Exhausted as error:
        raise _full(target) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unusable(target: Path, error: OSError) -> Exhausted | FailedPrecondition:
    if error.errno in _FULL:
        return _full(target)
    return FailedPrecondition(f"{target} cannot be made ({error.strerror}), nothing was made")


def _full(target: Path) -> Exhausted:
    return Exhausted(
        f"no space left for {target}, nothing was made: free some space, then repeat", path=target
    )


def _fill(plan: InitPlan, data: DataDirectory, password: str) -> Keyring:
    cluster_id = secrets.token_hex(8)
    root = RootKey.create(data.root_key)
    keyring = Keyring.create(root, cluster_id)
    write_durably(data.keyring, keyring.seal(root))
    write_durably(data.authority, keyring.ca.certificate_pem, mode=0o644)
    for folder in (data.audit, data.objects, data.gateway, data.node, data.run):
        make_private_dir(folder)
    gateway = _gateway_identity(plan, keyring)
    token = _write_state(plan, data, keyring, password, gateway)
    write_durably(data.config, _control_toml(plan, cluster_id))
    write_durably(make_private_dir(data.gateway / "state") / FILE, gateway.document())
    write_durably(data.gateway / "ca.pem", keyring.ca.certificate_pem, mode=0o644)
    write_durably(data.gateway / "gateway.toml", _gateway_toml(plan, keyring))
    write_durably(data.node / "join.token", token.encode())
    write_durably(data.node / "ca.pem", keyring.ca.certificate_pem, mode=0o644)
    write_durably(data.node / "node.toml", _node_toml(plan, keyring))
    return keyring


def _gateway_identity(plan: InitPlan, keyring: Keyring) -> Identity:
    """What the gateway calls with; it renews that, and asks for what it shows, by itself."""
    gateway, key = Principal(PrincipalKind.GATEWAY, plan.gateway_name), new_private_key()
    certificate = keyring.ca.issue(make_csr(key), gateway, server=False, client=True)
    return Identity.of(gateway, keyring.cluster_id, key, certificate, keyring.ca.certificate_pem)


def _write_state(
    plan: InitPlan, data: DataDirectory, keyring: Keyring, password: str, gateway: Identity
) -> str:
    """Make the state and the audit log with the first administrator; the node's join token."""
    passwords = Passwords(keyring.pepper)
    passwords.check_new(password, plan.administrator)
    hashed = passwords.hash(password)
    database = Database(data.state)
    try:
        migrate.create(database, RowMacs(keyring.row_key()), keyring.cluster_id, _now())
        log = AuditLog.open(data.audit, keyring.audit_sign, audit_origin(keyring.cluster_id), _now)
        try:
            if log.trouble:
                raise Exhausted(log.trouble)
            administrator = names.user(plan.administrator)
            entry = AuditEntry("intent", principal=administrator, method="init")
            log.append(entry).result()
            database.watch_log(log.head)
            token = _write_rows(plan, database, keyring, hashed, gateway)
            details = {
                "made": {
                    "user": administrator,
                    "role": names.role(ADMINISTRATOR),
                    "gateway": names.gateway(plan.gateway_name),
                    "node": names.node(plan.node_name),
                }
            }
            entry = AuditEntry(
                "result", principal=administrator, method="init", outcome="OK", details=details
            )
            log.append(entry).result()
        finally:
            log.close()
    finally:
        database.close()
    return token


def _write_rows(
    plan: InitPlan, database: Database, keyring: Keyring, hashed: str, gateway: Identity
) -> str:
    events, now = Events(), _now()
    changes = Changes(database, _now)
    policies = PolicyStore(database, Roles.load())
    bindings = Bindings(database, changes, policies, events, _now)
    users = Users(
        database=database,
        changes=changes,
        policies=policies,
        passwords=Passwords(keyring.pepper),
        totp=Totp(keyring.field_key, keyring.token_hmac),
        payload_key=keyring.token_hmac,
        events=events,
        clock=_now,
    )
    first = Principal(PrincipalKind.USER, plan.administrator)
    with database.write() as transaction:
        users.add(transaction, plan.administrator, hashed, must_change=False)
        transaction.run(
            tables.gateway.insert().values(
                id=plan.gateway_name,
                state="READY",
                hosts=[plan.site.host],
                certificate_serial=serial_of(gateway.certificate_pem),
                certificate_expire_time=not_after(gateway.certificate_pem),
                create_time=now,
            )
        )
        token = join_tokens.create(
            transaction,
            keyring.token_hmac,
            Principal(PrincipalKind.NODE, plan.node_name),
            first.name,
            now,
            lifetime=FIRST_JOIN,
        )
        for domain in (PLATFORM, EVERYWHERE):
            link = RoleLink(first.subject, ADMINISTRATOR, domain)
            bindings.bind(transaction, link, creator=first.name)
    return token.text


def _now() -> datetime:
    return datetime.now(UTC)


def _control_toml(plan: InitPlan, cluster_id: str) -> bytes:
    site = plan.site
    return _toml(
        {
            "": {"cluster_id": cluster_id, "data": "."},
            "listen": {
                "api": site.listens("api"),
                "machines": site.listens("machines"),
                "metrics": site.listens("metrics"),
            },
            "gateway": {
                "grpc": site.reached("gateway"),
                "openai": f"https://{site.reached('openai')}/v1",
            },
        }
    )


def _gateway_toml(plan: InitPlan, keyring: Keyring) -> bytes:
    site = plan.site
    return _toml(
        {
            "": {
                "cluster_id": keyring.cluster_id,
                "control": site.reached("machines"),
                "join": site.reached("api"),
                "ca": "ca.pem",
                "ca_fingerprint": keyring.ca.fingerprint(),
                "state": "state",
                "join_token": "join.token",
                "metrics": site.listens("gateway-metrics"),
            },
            "listen": {
                "grpc": site.listens("gateway"),
                "openai": site.listens("openai"),
            },
        }
    )


def _node_toml(plan: InitPlan, keyring: Keyring) -> bytes:
    site, objects = plan.site, DataDirectory(plan.data.absolute()).objects
    return _toml(
        {
            "": {
                "objects": objects.as_uri(),
                "join_token": "join.token",
                "state": "state",
                "address": site.host,
                "health": site.listens("node-health"),
                "metrics": site.listens("node-metrics"),
            },
            "control": {
                "join": site.reached("api"),
                "machines": site.reached("machines"),
                "ca": "ca.pem",
                "ca_fingerprint": keyring.ca.fingerprint(),
            },
            "devices": {"count": plan.devices},
        }
    )


def _toml(tables_: dict[str, dict[str, str | int]]) -> bytes:
    """TOML of texts and numbers; a JSON string is a TOML basic string."""
    lines: list[str] = []
    for name, values in tables_.items():
        lines += [f"\n[{name}]"] if name else []
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return ("\n".join(lines) + "\n").encode()
