"""A whole control plane on free ports, with credentials for every kind of caller.

Nothing in it is a stand-in but the clock: real data directory, certificates, tokens and listeners.
Sessions are written into the database instead of being logged in, because a password costs 0.2 s.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pyotp

from appliance.control.audit.growing_file import MIN_RESERVE
from appliance.control.auth import tokens
from appliance.control.auth.rules import RoleLink
from appliance.control.auth.sessions import COMPLETE, VERIFY_TOTP
from appliance.control.auth.tokens import TokenKind
from appliance.control.bootstrap import setup
from appliance.control.config import AuditSettings, ControlConfig, ControlListen, RequestLimits
from appliance.control.main import ControlPlane
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.access.bindings import Bindings
from appliance.control.store import tables
from appliance.core import config
from appliance.core.data_directory import DataDirectory
from appliance.core.errors import ApplianceError
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import make_csr, new_private_key
from appliance.crypto.reading import (
    serial_of,
)
from appliance.machine.identity import FILE, Identity
from appliance.wire.status import from_rpc_error
from appliance.wire.tls import channel

PASSWORD = "an old ship sails at noon"
ADMINISTRATOR = "alice"
GATEWAY = "gateway-1"


@dataclass
class MovingClock:
    """The time, moved forward by hand."""

    offset: timedelta = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def forward(self, **units: float) -> None:
        self.offset += timedelta(**units)


def make_data_directory(folder: Path) -> Path:
    """A new appliance; slow enough (0.5 s) to be made once and copied."""
    setup.init(setup.InitPlan(folder, ADMINISTRATOR), PASSWORD)
    return folder


def settings_of(folder: Path, **changes: Any) -> ControlConfig:
    loaded = config.load(ControlConfig, folder / "control.toml")
    return dataclasses.replace(
        loaded,
        **{
            "threads": 4,
            "audit": AuditSettings(reserve_bytes=MIN_RESERVE),
            "listen": ControlListen(
                api="127.0.0.1:0", machines="127.0.0.1:0", metrics="127.0.0.1:0"
            ),
            "limits": RequestLimits(anonymous_per_second=1e6, anonymous_burst=1_000_000),
            **changes,
        },
    )


@dataclass(frozen=True)
class Machine:
    """A key and a certificate."""

    key: bytes = field(repr=False)
    certificate: bytes = field(repr=False)


@dataclass
class Appliance:
    """A running control plane and what a test needs to call it."""

    folder: Path
    control: ControlPlane
    clock: MovingClock
    stage_port: int = 0
    _channels: dict[object, grpc.aio.Channel] = field(default_factory=dict)

    @property
    def ca_pem(self) -> bytes:
        return DataDirectory(self.folder).authority.read_bytes()

    @property
    def database(self) -> Any:
        return self.control.base.database

    def api(self, stub: Callable[[grpc.aio.Channel], Any], machine: Machine | None = None) -> Any:
        """A stub on the API listener; a machine's certificate is shown, and not asked for."""
        return stub(self.channel(self.control.api_port, machine))

    def staged(self, stub: Callable[[grpc.aio.Channel], Any]) -> Any:
        """A stub on the listener of the servicers a test has put behind the gate."""
        return stub(self.channel(self.stage_port))

    def machines(
        self, stub: Callable[[grpc.aio.Channel], Any], machine: Machine | None = None
    ) -> Any:
        """A stub on the machine listener."""
        return stub(self.channel(self.control.machines_port, machine))

    def channel(self, port: int, machine: Machine | None = None) -> grpc.aio.Channel:
        if (port, machine) not in self._channels:
            self._channels[port, machine] = channel(
                f"127.0.0.1:{port}",
                self.ca_pem,
                machine.key if machine else None,
                machine.certificate if machine else None,
                server_name=PrincipalKind.CONTROL.server_name,
            )
        return self._channels[port, machine]

    async def close_channels(self) -> None:
        for each in self._channels.values():
            await each.close(None)

    def session(
        self,
        user: str,
        *,
        step: str = COMPLETE,
        mfa_age: timedelta = timedelta(),
        lifetime: timedelta = timedelta(hours=1),
    ) -> str:
        """Bearer token of a new session of a user that exists."""
        minted = tokens.mint(TokenKind.SESSION, self.control.base.keyring.token_hmac)
        now = self.clock()
        with self.database.write() as transaction:
            transaction.run(
                tables.session.insert().values(
                    id=minted.id,
                    user=user,
                    digest=minted.digest,
                    step=step,
                    create_time=now,
                    expire_time=now + lifetime,
                    seen_time=now,
                    mfa_time=None if step == VERIFY_TOTP else now - mfa_age,
                    source="test",
                )
            )
        return minted.text

    def user(
        self,
        name: str,
        *roles: tuple[str, str],
        locked: bool = False,
        enrolled: bool = False,
    ) -> str:
        """A person with roles given as (role, domain); their name."""
        with self.database.write() as transaction:
            transaction.run(
                tables.user.insert().values(
                    id=name, password_hash="none", locked=locked, create_time=self.clock()
                )
            )
        principal = Principal(PrincipalKind.USER, name)
        for role, domain in roles:
            self.bind(RoleLink(principal.subject, role, domain))
        if enrolled:
            self.enrol(name)
        return principal.name

    def enrol(self, name: str) -> pyotp.TOTP:
        """A proved authenticator of a user who has none."""
        totp = self.control.people.totp
        with self.database.write() as transaction:
            uri = totp.begin(transaction, name, name, self.clock())
            totp.confirm(transaction, name)
        found = pyotp.parse_uri(uri)
        assert isinstance(found, pyotp.TOTP)
        return found

    def bind(self, link: RoleLink) -> str:
        """A new binding; its name."""
        base = self.control.base
        bindings = Bindings(base.database, base.changes, base.policies, base.events, base.clock)
        with base.database.write() as transaction:
            return bindings.bind(transaction, link, "users/alice").name

    def project(self, name: str) -> str:
        with self.database.write() as transaction:
            transaction.run(
                tables.project.insert().values(id=name, description="", create_time=self.clock())
            )
            self.control.base.keys.create_project_key(transaction, name, self.clock())
        return f"projects/{name}"

    def service_account(self, name: str, project: str, role: str = "inference") -> str:
        """An application of a project with a role there; a live bearer token."""
        minted = tokens.mint(TokenKind.SERVICE, self.control.base.keyring.token_hmac)
        now = self.clock()
        with self.database.write() as transaction:
            transaction.run(
                tables.service_account.insert().values(
                    id=name, project=project, locked=False, create_time=now
                )
            )
            transaction.run(
                tables.token.insert().values(
                    id=minted.id,
                    service_account=name,
                    digest=minted.digest,
                    create_time=now,
                    expire_time=now + timedelta(days=1),
                )
            )
        self.bind(RoleLink(f"svc:{name}", role, project))
        return minted.text

    def node(self, name: str, *, state: str = "LOST") -> Machine:
        """A node that has joined."""
        machine = self.certificate(PrincipalKind.NODE, name)
        with self.database.write() as transaction:
            transaction.run(
                tables.node.insert().values(
                    id=name,
                    state=state,
                    certificate_serial=serial_of(machine.certificate),
                    create_time=self.clock(),
                )
            )
            self.control.base.policies.changed(transaction)
        return machine

    def gateway(self) -> Machine:
        """The gateway that `init` made."""
        file = DataDirectory(self.folder).gateway / "state" / FILE
        held = Identity.parse(file.read_bytes(), PrincipalKind.GATEWAY)
        return Machine(held.key_pem, held.certificate_pem)

    def certificate(
        self, kind: PrincipalKind, name: str, *, lifetime: timedelta = timedelta(hours=1)
    ) -> Machine:
        """A certificate of the appliance's authority for somebody nobody has heard of."""
        key = new_private_key()
        issued = self.control.base.keyring.ca.issue(
            make_csr(key), Principal(kind, name), server=False, client=True, lifetime=lifetime
        )
        return Machine(key, issued)

    def records(self) -> list[dict[str, Any]]:
        """The audit log, oldest first."""
        return list(self.control.base.opened.log.newest())[::-1]

    def records_of(self, asked: str) -> list[dict[str, Any]]:
        """The records of a call by the caller's own request id, oldest first."""
        records = self.records()
        ids = {
            record["request_id"]
            for record in records
            if record["details"].get("caller_request_id") == asked
        }
        return [record for record in records if record["request_id"] in ids]


def bearer(token: str, request_id: str = "") -> tuple[tuple[str, str], ...]:
    """Metadata with a token, and a request id if one is given."""
    found = [("authorization", f"Bearer {token}")] if token else []
    return (*found, *([("x-request-id", request_id)] if request_id else []))


async def error_of(call: Any) -> ApplianceError:
    """The error a call ends with, as the client sees it."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    raise AssertionError("the call went well")


Stage = Callable[[ControlPlane], Sequence[Servicer]]


@asynccontextmanager
async def running(
    template: Path,
    folder: Path,
    *,
    settings: Callable[[Path], ControlConfig] = settings_of,
    stage: Stage | None = None,
    clock: MovingClock | None = None,
) -> AsyncIterator[Appliance]:
    """A control plane on a copy of a data directory.

    `stage` makes servicers for one more listener behind the same gate.
    """
    shutil.copytree(template, folder)
    clock = clock or MovingClock()
    control = ControlPlane.build(settings(folder), clock)
    appliance = Appliance(folder, control, clock)
    if stage is not None:
        identify, _ = control._identities()
        appliance.stage_port = control.server.bind(
            control._listener("api", identify, stage(control))
        )
    try:
        # The store is known, as it is a moment after the real process serves.
        await asyncio.to_thread(control.work.storage.do_all)
        await control.server.set_serving(serving=True)
        await control.server.start()
        yield appliance
    finally:
        await appliance.close_channels()
        await control.server.stop()
        await control.close()
