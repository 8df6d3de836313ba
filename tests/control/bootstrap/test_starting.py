"""What `appliance up` renews before it starts node and gateway, and what it leaves alone."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.control.auth import join_tokens
from appliance.control.bootstrap import joining
from appliance.control.bootstrap.opening import open_data
from appliance.control.bootstrap.starting import (
    GATEWAY,
    MACHINES,
    NODE,
    HeldIdentity,
    prepare,
    why_join,
)
from appliance.control.services.fleet.certificates import EVICTED
from appliance.control.services.fleet.node_rows import LOST
from appliance.control.store import tables
from appliance.core.errors import AuditUnavailable
from appliance.core.files import write_durably
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import Authority, make_csr, new_private_key
from appliance.crypto.reading import (
    serial_of,
)
from tests.fakes.appliance import settings_of

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def now() -> datetime:
    return NOW


def after(days: float) -> Callable[[], datetime]:
    return lambda: NOW + timedelta(days=days)


@dataclass(frozen=True)
class Row:
    state: str = LOST
    certificate_serial: str = "b"
    previous_serial: str = "a"
    certificate_used: bool = False


HELD = HeldIdentity("node-1", NOW - DAY / 2, NOW + DAY / 2, "b")


@pytest.mark.parametrize(
    ("held", "row", "at", "why"),
    [
        (HELD, Row(), NOW, ""),
        (HeldIdentity("node-1", HELD.begin, HELD.end, "a"), Row(), NOW, ""),
        (HELD, Row(certificate_used=True), NOW, ""),
        # Restored from a backup: it would be refused, and evicted if it recovered.
        (
            HeldIdentity("node-1", HELD.begin, HELD.end, "a"),
            Row(certificate_used=True),
            NOW,
            "knows another certificate",
        ),
        (HELD, Row(), NOW + DAY, "its certificate ended on"),
        (HELD, Row(), NOW - DAY, "made under a wrong clock"),
        (HELD, Row(EVICTED), NOW, "it was evicted"),
        (None, Row(EVICTED), NOW, "it was evicted"),
        (None, Row(), NOW, "it has no identity"),
        (None, None, NOW, "it has no identity"),
        (HELD, None, NOW, "knows another certificate"),
        (
            HeldIdentity("node-1", HELD.begin, HELD.end, "c"),
            Row(),
            NOW,
            "knows another certificate",
        ),
    ],
)
def test_why_a_node_must_join(
    held: HeldIdentity | None, row: Row | None, at: datetime, why: str
) -> None:
    said = why_join(held, row, at)
    assert bool(said) == bool(why)
    assert why in said


def joined(folder: Path, authority: Authority | None = None, *, state: str = LOST) -> None:
    """As a node leaves its folder that joined just now: no token, an identity."""
    with closing(open_data(settings_of(folder), now)) as opened:
        key = new_private_key()
        certificate = (authority or opened.keyring.ca).issue(
            make_csr(key),
            Principal(PrincipalKind.NODE, "node-1"),
            server=False,
            client=True,
            now=NOW,
        )
        with opened.database.write() as transaction:
            transaction.run(
                tables.node.insert().values(
                    id="node-1",
                    state=state,
                    certificate_serial=serial_of(certificate),
                    create_time=NOW,
                )
            )
    (folder / "node" / "join.token").unlink()
    identity = folder / "node" / "state" / "identity.json"
    identity.parent.mkdir(mode=0o700)
    identity.touch(0o600)
    held = {"key": base64.b64encode(key).decode(), "certificate": certificate.decode()}
    identity.write_text(json.dumps(held))


class UnableLog:
    """An audit log that can take nothing."""

    def append(self, _: object) -> None:
        raise AuditUnavailable("the disk is full")


def prepared(
    folder: Path, clock: Callable[[], datetime], machines: tuple[str, ...] = MACHINES
) -> list[str]:
    with closing(open_data(settings_of(folder), clock)) as opened:
        return prepare(opened, machines, clock)


def lets_in(
    folder: Path, clock: Callable[[], datetime], kind: PrincipalKind = PrincipalKind.NODE
) -> str:
    """The machine that the token in its folder lets in."""
    with closing(open_data(settings_of(folder), clock)) as opened:
        text = (folder / kind.path / "join.token").read_text()
        with opened.database.write() as transaction:
            return join_tokens.consume(
                transaction, opened.keyring.token_hmac, text, clock(), kind
            ).machine


def records(folder: Path) -> list[dict[str, object]]:
    lines = b"".join(path.read_bytes() for path in sorted((folder / "audit").glob("0*.log")))
    return [json.loads(line) for line in lines.splitlines()]


def test_what_holds_is_left_alone(copy: Path) -> None:
    token = (copy / "node" / "join.token").read_bytes()
    assert prepared(copy, now) == []
    assert (copy / "node" / "join.token").read_bytes() == token
    joined(copy)
    before = len(records(copy))
    assert prepared(copy, after(0.9)) == []
    assert not (copy / "node" / "join.token").exists()
    assert len(records(copy)) == before


def test_a_node_that_was_off_for_days_gets_a_token_and_it_is_recorded(copy: Path) -> None:
    joined(copy)
    (said,) = prepared(copy, after(12), (NODE,))
    assert said.startswith("nodes/node-1 joins anew, with a new key: its certificate ended on ")
    assert (copy / "node" / "join.token").stat().st_mode & 0o777 == 0o600
    intent, result = records(copy)[-2:]
    assert [each["kind"] for each in (intent, result)] == ["intent", "result"]
    assert (result["method"], result["resource"]) == ("join-token", "nodes/node-1")
    details = result["details"]
    assert isinstance(details, dict)
    assert details["by"].startswith("appliance up, uid ")
    assert details["why"].startswith("its certificate ended on ")
    # Until it is used there is no other one.
    assert prepared(copy, after(12), (NODE,)) == []
    assert lets_in(copy, after(12)) == "node-1"


def test_a_first_start_days_after_init_gets_another_token(copy: Path) -> None:
    (said,) = prepared(copy, after(12), (NODE,))
    assert said == "nodes/node-1 joins anew, with a new key: it has no identity that can be used"
    assert lets_in(copy, after(12)) == "node-1"


@pytest.mark.attack
def test_an_evicted_node_gets_one_from_up_alone_and_no_token_of_before(copy: Path) -> None:
    joined(copy, state=EVICTED)
    assert prepared(copy, now, (GATEWAY,)) == []
    assert not (copy / "node" / "join.token").exists()
    (said,) = prepared(copy, now)
    assert "it was evicted (`appliance up --no-node`" in said


@pytest.mark.attack
def test_an_identity_of_another_appliance_names_no_node(copy: Path) -> None:
    joined(copy, Authority.create(settings_of(copy).cluster_id))
    (said,) = prepared(copy, now)
    assert said == "nodes/node-1 joins anew, with a new key: it has no identity that can be used"


@pytest.mark.parametrize("text", ["", "state = 3", "[state", 'join_token = "x"'])
def test_a_node_whose_configuration_is_wrong_says_so_itself(copy: Path, text: str) -> None:
    (copy / "node" / "node.toml").write_text(text)
    assert prepared(copy, after(12), (NODE,)) == []


def test_a_token_that_somebody_has_put_there_is_kept(copy: Path) -> None:
    joined(copy)
    made = joining.make(settings_of(copy), Principal(PrincipalKind.NODE, "node-1"), after(12))
    token = copy / "node" / "join.token"
    token.touch(0o600)
    token.write_text(made.token.text + "\n")
    assert prepared(copy, after(12), (NODE,)) == []
    assert token.read_text() == made.token.text + "\n"


def test_a_gateway_that_was_off_for_days_joins_anew(copy: Path) -> None:
    assert prepared(copy, after(9.9), (GATEWAY,)) == []
    (said,) = prepared(copy, after(12), (GATEWAY,))
    assert said.startswith("gateways/gateway-1 joins anew, with a new key: its certificate ended ")
    assert prepared(copy, after(12), (GATEWAY,)) == []
    assert lets_in(copy, after(12), PrincipalKind.GATEWAY) == "gateway-1"


def test_a_gateway_that_the_state_knows_otherwise_joins_anew(copy: Path) -> None:
    with closing(open_data(settings_of(copy), now)) as opened, opened.database.write() as change:
        change.run(tables.gateway.update().values(certificate_serial="of a backup"))
    (said,) = prepared(copy, now, (GATEWAY,))
    assert said.endswith("the control plane knows another certificate of it")


@pytest.mark.parametrize("left", [None, b"", b"none"])
def test_a_gateway_that_has_lost_its_identity_joins_anew_under_its_name(
    copy: Path, left: bytes | None
) -> None:
    path = copy / "gateway" / "state" / "identity.json"
    path.unlink()
    if left is not None:
        write_durably(path, left)
    (said,) = prepared(copy, now, (GATEWAY,))
    assert said.endswith(": it has no identity that can be used")
    assert lets_in(copy, now, PrincipalKind.GATEWAY) == "gateway-1"


def test_a_token_of_a_node_in_the_gateways_folder_names_no_gateway(copy: Path) -> None:
    made = joining.make(settings_of(copy), Principal(PrincipalKind.NODE, "gpu-7"), now)
    write_durably(copy / "gateway" / "join.token", made.token.text.encode())
    shutil.rmtree(copy / "gateway" / "state")
    (said,) = prepared(copy, now, (GATEWAY,))
    assert said.startswith("gateways/gateway-1 joins anew")
    assert lets_in(copy, now, PrincipalKind.GATEWAY) == "gateway-1"


def as_in_0_1_0(folder: Path, lifetime: timedelta = timedelta(days=397)) -> None:
    """A gateway's folder as 0.1.0 made it: two files for everything, no state."""
    shutil.rmtree(folder / "gateway" / "state")
    with closing(open_data(settings_of(folder), now)) as opened:
        key = new_private_key()
        certificate = opened.keyring.ca.issue(
            make_csr(key),
            Principal(PrincipalKind.GATEWAY, "gateway-1"),
            server=True,
            client=True,
            lifetime=lifetime,
        )
        with opened.database.write() as change:
            change.run(tables.gateway.update().values(certificate_serial=serial_of(certificate)))
    write_durably(folder / "gateway" / "key.pem", key)
    write_durably(folder / "gateway" / "cert.pem", certificate)
    (folder / "gateway" / "gateway.toml").write_text(
        'cluster_id = "c"\nkey = "key.pem"\ncertificate = "cert.pem"\nca = "ca.pem"\n'
    )


def test_the_files_of_a_gateway_of_0_1_0_are_its_identity_until_they_end(copy: Path) -> None:
    as_in_0_1_0(copy)
    assert prepared(copy, after(396), (GATEWAY,)) == []
    (said,) = prepared(copy, after(398), (GATEWAY,))
    assert "gateways/gateway-1 joins anew, with a new key: its certificate ended" in said
    assert lets_in(copy, after(398), PrincipalKind.GATEWAY) == "gateway-1"


@pytest.mark.parametrize("part", ["key", "certificate"])
def test_a_node_whose_key_or_certificate_cannot_be_read_joins_anew(copy: Path, part: str) -> None:
    joined(copy)
    identity = copy / "node" / "state" / "identity.json"
    identity.write_text(json.dumps(json.loads(identity.read_text()) | {part: "bm9uZQ=="}))
    (said,) = prepared(copy, now)
    assert said.endswith(": it has no identity that can be used")


def test_what_cannot_be_recorded_is_said_and_makes_no_token(copy: Path) -> None:
    joined(copy)
    with closing(open_data(settings_of(copy), now)) as opened:
        unable = replace(opened, log=UnableLog())
        said = prepare(unable, MACHINES, after(12))
    assert said == [
        f"the {machine} of this server gets nothing new: the disk is full" for machine in MACHINES
    ]
    assert not (copy / "gateway" / "join.token").exists()


def test_the_authoritys_certificate_is_written_where_it_was_lost(copy: Path) -> None:
    paths = [copy / "ca.pem", copy / "node" / "ca.pem", copy / "gateway" / "ca.pem"]
    before = {path.read_bytes() for path in paths}
    for path in paths:
        path.unlink()
    assert prepared(copy, now) == [f"{path} was missing and is written anew" for path in paths]
    assert {path.read_bytes() for path in paths} == before
