"""What `appliance up` renews before it starts node and gateway, and what it leaves alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from appliance.control import joining
from appliance.control.auth import join_tokens
from appliance.control.opening import open_data
from appliance.control.services.nodes import EVICTED, LOST
from appliance.control.starting import GATEWAY, MACHINES, NODE, Held, prepare, why_join
from appliance.control.store import tables
from appliance.core.errors import AuditUnavailable
from appliance.core.files import write_durably
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import (
    Authority,
    hosts_of,
    is_pair,
    make_csr,
    new_private_key,
    not_after,
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


HELD = Held("node-1", NOW - DAY / 2, NOW + DAY / 2, "b")


@pytest.mark.parametrize(
    ("held", "row", "at", "why"),
    [
        (HELD, Row(), NOW, ""),
        (Held("node-1", HELD.begin, HELD.end, "a"), Row(), NOW, ""),
        (HELD, Row(), NOW + DAY, "its certificate ended on"),
        (HELD, Row(), NOW - DAY, "made under a wrong clock"),
        (HELD, Row(EVICTED), NOW, "it was evicted"),
        (None, Row(EVICTED), NOW, "it was evicted"),
        (None, Row(), NOW, "it has no identity"),
        (None, None, NOW, "it has no identity"),
        (HELD, None, NOW, "knows another certificate"),
        (Held("node-1", HELD.begin, HELD.end, "c"), Row(), NOW, "knows another certificate"),
    ],
)
def test_why_a_node_must_join(held: Held | None, row: Row | None, at: datetime, why: str) -> None:
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
        return prepare(opened, settings_of(folder), machines, clock)


def lets_in(folder: Path, clock: Callable[[], datetime]) -> str:
    """The node that the token in the node's folder lets in."""
    with closing(open_data(settings_of(folder), clock)) as opened:
        text = (folder / "node" / "join.token").read_text()
        with opened.database.write() as transaction:
            return join_tokens.consume(transaction, opened.keyring.token_hmac, text, clock())


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
    (said,) = prepared(copy, after(12))
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
    assert prepared(copy, after(12)) == []
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
    assert prepared(copy, after(12)) == []


def test_a_token_that_somebody_has_put_there_is_kept(copy: Path) -> None:
    joined(copy)
    made = joining.make(settings_of(copy), "node-1", after(12))
    token = copy / "node" / "join.token"
    token.touch(0o600)
    token.write_text(made.token.text + "\n")
    assert prepared(copy, after(12)) == []
    assert token.read_text() == made.token.text + "\n"


def test_the_gateways_certificate_is_renewed_before_it_ends_and_after(copy: Path) -> None:
    path = copy / "gateway" / "cert.pem"
    for days, why in ((360, "the one before ends on "), (1000, "the one before ended on ")):
        before = path.read_bytes()
        (said,) = prepared(copy, after(days), (GATEWAY,))
        assert said.startswith("gateways/gateway-1 has a new certificate until ")
        assert why in said
        assert not_after(path.read_bytes()) > not_after(before)
    assert prepared(copy, after(1000), (GATEWAY,)) == []


def test_a_certificate_that_the_state_does_not_know_is_renewed(copy: Path) -> None:
    with closing(open_data(settings_of(copy), now)) as opened, opened.database.write() as change:
        change.run(tables.gateway.update().values(certificate_serial="of a backup"))
    (said,) = prepared(copy, now, (GATEWAY,))
    assert said.endswith("the control plane knows another one")


@pytest.mark.parametrize("left", [None, b"", b"none"])
@pytest.mark.parametrize("lost", [("key.pem",), ("cert.pem",), ("key.pem", "cert.pem")])
def test_a_gateway_that_has_lost_its_key_or_certificate_gets_others(
    copy: Path, lost: tuple[str, ...], left: bytes | None
) -> None:
    path = copy / "gateway" / "cert.pem"
    before = path.read_bytes()
    for name in lost:
        path.with_name(name).unlink()
        if left is not None:
            write_durably(path.with_name(name), left)
    (said,) = prepared(copy, now, (GATEWAY,))
    assert said.endswith(": its key or its certificate was missing or could not be read")
    assert hosts_of(path.read_bytes()) == hosts_of(before)
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    key = load_pem_private_key(path.with_name("key.pem").read_bytes(), None)
    assert certificate.public_key() == key.public_key()
    assert prepared(copy, now, (GATEWAY,)) == []


def test_a_renewal_that_was_cut_is_done_again(copy: Path) -> None:
    # The key was written and its certificate was not: the gateway could not start with the two.
    path = copy / "gateway" / "key.pem"
    path.unlink()
    write_durably(path, new_private_key())
    (said,) = prepared(copy, now, (GATEWAY,))
    assert said.endswith(": the one before was not that of its key")
    assert is_pair(path.read_bytes(), path.with_name("cert.pem").read_bytes())
    assert prepared(copy, now, (GATEWAY,)) == []


def test_a_renewal_that_cannot_be_recorded_makes_no_key(copy: Path) -> None:
    (copy / "gateway" / "key.pem").unlink()
    with closing(open_data(settings_of(copy), now)) as opened:
        unable = replace(opened, log=UnableLog())
        (said,) = prepare(unable, settings_of(copy), (GATEWAY,), now)
    assert said == "the gateway of this server gets nothing new: the disk is full"
    assert not (copy / "gateway" / "key.pem").exists()


@pytest.mark.parametrize("part", ["key", "certificate"])
def test_a_node_whose_key_or_certificate_cannot_be_read_joins_anew(copy: Path, part: str) -> None:
    joined(copy)
    identity = copy / "node" / "state" / "identity.json"
    identity.write_text(json.dumps(json.loads(identity.read_text()) | {part: "bm9uZQ=="}))
    (said,) = prepared(copy, now)
    assert said.endswith(": it has no identity that can be used")


def test_what_cannot_be_renewed_is_said_and_stops_nobody_else(copy: Path) -> None:
    joined(copy)
    other = Authority.create(settings_of(copy).cluster_id)
    (copy / "gateway" / "cert.pem").write_bytes(other.certificate_pem)
    said = prepared(copy, after(12))
    assert len(said) == 2
    assert "joins anew" in said[0]
    assert said[1].startswith("the gateway of this server gets nothing new: ")


def test_the_authoritys_certificate_is_written_where_it_was_lost(copy: Path) -> None:
    paths = [copy / "ca.pem", copy / "node" / "ca.pem", copy / "gateway" / "ca.pem"]
    before = {path.read_bytes() for path in paths}
    for path in paths:
        path.unlink()
    assert prepared(copy, now) == [f"{path} was missing and is written anew" for path in paths]
    assert {path.read_bytes() for path in paths} == before
