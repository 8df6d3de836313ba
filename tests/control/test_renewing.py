"""A gateway's new certificate: same key and names, more time, and an end to the one before."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.control import renewing
from appliance.control.opening import open_data
from appliance.control.services.nodes import EVICTED
from appliance.control.store import tables
from appliance.core.errors import ApplianceError, FailedPrecondition, Unauthenticated
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import (
    Authority,
    hosts_of,
    make_csr,
    new_private_key,
    not_after,
    peer_identity,
    serial_of,
)
from tests.fakes.appliance import settings_of

REPOSITORY = Path(__file__).parents[2]
GATEWAY = Principal(PrincipalKind.GATEWAY, "gateway-1")


def now() -> datetime:
    return datetime.now(UTC)


def next_year() -> datetime:
    return now() + timedelta(days=390)


def serial_on_record(folder: Path) -> str:
    opened = open_data(settings_of(folder), next_year)
    try:
        with opened.database.read() as state:
            row = state.first(tables.gateway.select())
            assert row is not None
            return str(row.certificate_serial)
    finally:
        opened.close()


def test_it_has_the_same_key_and_names_and_replaces_the_one_before(copy: Path) -> None:
    path, key = copy / "gateway" / "cert.pem", copy / "gateway" / "key.pem"
    before, held = path.read_bytes(), key.read_bytes()
    made = renewing.renew(settings_of(copy), next_year)
    after = path.read_bytes()
    assert made.path == path
    assert made.expire_time == not_after(after)
    assert not_after(after) - not_after(before) > timedelta(days=389)
    assert hosts_of(after) == hosts_of(before) == (["localhost"], ["127.0.0.1"])
    assert key.read_bytes() == held
    assert path.stat().st_mode & 0o777 == 0o600
    cluster = settings_of(copy).cluster_id
    for need in ("client", "server"):
        assert peer_identity(after, cluster, next_year(), need=need) == GATEWAY
    assert serial_on_record(copy) == serial_of(after) != serial_of(before)


def test_one_that_has_ended_is_renewed_too(copy: Path) -> None:
    late = now() + timedelta(days=1000)
    renewing.renew(settings_of(copy), lambda: late)
    path = copy / "gateway" / "cert.pem"
    assert peer_identity(path.read_bytes(), settings_of(copy).cluster_id, late, need="client")


def test_intent_and_result_are_recorded(copy: Path) -> None:
    renewing.renew(settings_of(copy), now)
    lines = b"".join(path.read_bytes() for path in sorted((copy / "audit").glob("0*.log")))
    records = [json.loads(line) for line in lines.splitlines()][-2:]
    said = [(each["kind"], each["method"], each["resource"], each["outcome"]) for each in records]
    assert said == [
        ("intent", "gateway-certificate", "gateways/gateway-1", ""),
        ("result", "gateway-certificate", "gateways/gateway-1", "OK"),
    ]
    assert all(each["details"]["by"].startswith("offline, uid ") for each in records)


def other(authority: Authority, principal: Principal) -> bytes:
    csr = make_csr(new_private_key())
    return authority.issue(csr, principal, server=True, client=True)


@pytest.mark.attack
@pytest.mark.parametrize("kind", [PrincipalKind.CONTROL, PrincipalKind.REPLICA])
def test_nobody_but_a_known_gateway_gets_one(copy: Path, kind: PrincipalKind) -> None:
    path = copy / "gateway" / "cert.pem"
    opened = open_data(settings_of(copy), now)
    authority, cluster = opened.keyring.ca, opened.keyring.cluster_id
    opened.close()
    stranger = Authority.create(cluster)
    unknown = Principal(PrincipalKind.GATEWAY, "gateway-2")
    cases: list[tuple[bytes, type[ApplianceError]]] = [
        (other(authority, Principal(kind, "gateway-1")), FailedPrecondition),
        (other(authority, unknown), FailedPrecondition),
        (other(stranger, GATEWAY), Unauthenticated),
    ]
    for certificate, error in cases:
        path.write_bytes(certificate)
        with pytest.raises(error):
            renewing.renew(settings_of(copy), now)
        assert path.read_bytes() == certificate


@pytest.mark.attack
def test_an_evicted_gateway_gets_none_and_a_running_control_plane_refuses(copy: Path) -> None:
    opened = open_data(settings_of(copy), now)
    try:
        with pytest.raises(FailedPrecondition, match="another control plane uses"):
            renewing.renew(settings_of(copy), now)
        with opened.database.write() as transaction:
            transaction.run(tables.gateway.update().values(state=EVICTED))
    finally:
        opened.close()
    with pytest.raises(FailedPrecondition, match="gets no certificate"):
        renewing.renew(settings_of(copy), now)


def test_the_command_prints_one_json_object(copy: Path) -> None:
    program = [sys.executable, "-m", "appliance.control", "--config", str(copy / "control.toml")]
    done = subprocess.run(
        [*program, "gateway-certificate"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["certificate"] == str(copy / "gateway" / "cert.pem")
