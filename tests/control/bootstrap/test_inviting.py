"""Which machines get a join token: those that cannot come back by themselves, and no others."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.control.bootstrap.inviting import (
    FINE,
    JOINS,
    REFUSED,
    KnownMachine,
    decide,
    who_joins,
)
from appliance.control.bootstrap.opening import open_data
from appliance.control.store import tables
from appliance.core.errors import FailedPrecondition
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import Authority, make_csr, new_private_key
from appliance.crypto.reading import serial_of
from appliance.machine.identity import Identity
from tests.fakes.appliance import settings_of

NOW = datetime.now(UTC)
AUTHORITY = Authority.create("c1")
NODE = Principal(PrincipalKind.NODE, "gpu-1")
GATEWAY = Principal(PrincipalKind.GATEWAY, "gateway-1")
CERTIFICATE = AUTHORITY.issue(make_csr(new_private_key()), NODE, server=False, client=True, now=NOW)
SERIAL = serial_of(CERTIFICATE)


def known(state: str = "LOST", *serials: str) -> KnownMachine:
    return KnownMachine(state, frozenset(serials or (SERIAL,)))


@pytest.mark.parametrize(
    ("certificate", "row", "days", "what", "why"),
    [
        (CERTIFICATE, known(), 0, FINE, "by itself"),
        (CERTIFICATE, known("READY", "newer", SERIAL), 5, FINE, "by itself"),
        # It has ended, and comes back by its own key.
        (CERTIFICATE, known(), 99, FINE, "by itself"),
        (CERTIFICATE, known(), 101, JOINS, "ended more than 90 days ago"),
        (CERTIFICATE, known("LOST", "other"), 0, JOINS, "does not know"),
        (CERTIFICATE, None, 0, JOINS, "does not know"),
        (None, None, 0, JOINS, "has no identity"),
        (None, known(), 0, JOINS, "has no identity"),
        (b"none", known(), 0, JOINS, "has no identity"),
        (CERTIFICATE, known("EVICTED"), 0, REFUSED, "control_readmit"),
        (None, known("EVICTED"), 0, REFUSED, "control_readmit"),
    ],
)
def test_who_gets_a_token(
    certificate: bytes | None, row: KnownMachine | None, days: int, what: str, why: str
) -> None:
    found, said = decide(certificate, row, NOW + timedelta(days=days), readmit=False)
    assert (found, why in said) == (what, True)


@pytest.mark.attack
def test_an_evicted_machine_gets_one_only_when_the_operator_says_so() -> None:
    assert decide(CERTIFICATE, known("EVICTED"), NOW, readmit=True)[0] == JOINS


@pytest.mark.parametrize(("used", "what"), [(False, FINE), (True, JOINS)])
def test_a_machine_of_a_backup_joins_when_the_next_certificate_was_used(
    copy: Path, *, used: bool, what: str
) -> None:
    row = {"certificate_serial": "newer", "previous_serial": SERIAL, "certificate_used": used}
    with (
        closing(open_data(settings_of(copy), lambda: NOW)) as opened,
        opened.database.write() as change,
    ):
        change.run(tables.node.insert().values(id="gpu-1", state="LOST", create_time=NOW, **row))
    assert who_joins(settings_of(copy), {NODE: CERTIFICATE}, NOW, [])[NODE][0] == what


@pytest.mark.attack
def test_to_readmit_is_no_standing_order(copy: Path) -> None:
    for name in (GATEWAY, NODE):  # one that is READY, one that nobody knows
        with pytest.raises(FailedPrecondition, match="is not evicted: remove it from control_read"):
            who_joins(settings_of(copy), {name: None}, NOW, [name])


def gateway_of(folder: Path) -> bytes:
    document = (folder / "gateway" / "state" / "identity.json").read_bytes()
    return Identity.parse(document, PrincipalKind.GATEWAY).certificate_pem


def test_it_is_asked_beside_a_control_plane_that_runs(copy: Path) -> None:
    with closing(open_data(settings_of(copy), lambda: NOW)) as opened:
        with opened.database.write() as change:
            change.run(
                tables.node.insert().values(
                    id="gpu-1", state="EVICTED", certificate_serial=SERIAL, create_time=NOW
                )
            )
        asked = {"nodes/gpu-1": CERTIFICATE.decode(), "nodes/gpu-2": ""}
        asked["gateways/gateway-1"] = gateway_of(copy).decode()
        program = [sys.executable, "-m", "appliance.control", "--config"]
        for readmit, joins in (
            ([], {"nodes/gpu-2"}),
            (["nodes/gpu-1"], {"nodes/gpu-1", "nodes/gpu-2"}),
        ):
            done = subprocess.run(
                [
                    *(*program, str(copy / "control.toml"), "who-joins"),
                    *(f"--readmit={name}" for name in readmit),
                ],
                input=json.dumps(asked),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, "")
            facts = json.loads(done.stdout)
            assert facts[JOINS].keys() == joins
            assert facts[FINE].keys() == {"gateways/gateway-1"}
            assert facts[REFUSED].keys() == {"nodes/gpu-1"} - joins


def test_a_state_of_the_release_before_is_read_too(copy: Path) -> None:
    with closing(sqlite3.connect(copy / "state.db")) as old:
        old.execute("ALTER TABLE gateway DROP COLUMN previous_serial")
        old.commit()
    held = {GATEWAY: gateway_of(copy), NODE: None}
    found = who_joins(settings_of(copy), held, NOW, [])
    assert {machine: what for machine, (what, _) in found.items()} == {GATEWAY: FINE, NODE: JOINS}


@pytest.mark.parametrize("said", ["", "[]", "{", '{"users/alice": ""}'])
def test_what_is_no_list_of_machines_is_refused(copy: Path, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "appliance.control", "--config", copy / "control.toml", "who-joins"],
        input=said,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
