"""Which certificates of gateways a worker takes, by what its node heard last."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.core.errors import Unauthenticated, Unavailable
from appliance.core.identity import PrincipalKind
from appliance.crypto.reading import serial_of
from appliance.wire.accepted import ISSUING, AcceptedFile, AcceptedSerials
from tests.fakes.wire import issued

CERTIFICATE = issued(PrincipalKind.GATEWAY, "g1").certificate
SERIAL = serial_of(CERTIFICATE)
NOW = datetime.now(UTC)
LATER = NOW + 2 * ISSUING
"""When the certificate had long been issued."""


@pytest.fixture
def file(tmp_path: Path) -> AcceptedFile:
    return AcceptedFile(tmp_path / "gateways.json")


@pytest.mark.parametrize(
    ("serials", "as_of", "is_taken"),
    [
        ({SERIAL}, LATER, True),
        ({SERIAL, "1"}, LATER, True),
        ({SERIAL}, NOW - timedelta(days=1), True),
        ({"1"}, LATER, False),
        (set(), LATER, False),
        # It may be newer than what was heard.
        ({"1"}, NOW - timedelta(days=1), True),
        (set(), NOW + ISSUING / 2, True),
    ],
)
def test_what_is_not_named_and_was_issued_before_counts_no_more(
    file: AcceptedFile, serials: set[str], as_of: datetime, *, is_taken: bool
) -> None:
    file.write(AcceptedSerials(frozenset(serials), as_of))
    if is_taken:
        file.check(CERTIFICATE)
    else:
        with pytest.raises(Unauthenticated, match="join again"):
            file.check(CERTIFICATE)


def test_before_anything_was_heard_all_count(file: AcceptedFile) -> None:
    file.check(CERTIFICATE)


@pytest.mark.parametrize(
    "document",
    [b"", b"{", b"[]", b"null", b"\xff", b"{}", b'{"serials": 1, "as_of": ""}'],
)
def test_a_file_that_is_none_lets_nobody_in(file: AcceptedFile, document: bytes) -> None:
    file.path.write_bytes(document)
    with pytest.raises(Unavailable, match=r"gateways\.json cannot be read"):
        file.check(CERTIFICATE)


def test_a_file_that_cannot_be_written_stays(
    file: AcceptedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write(AcceptedSerials(frozenset({SERIAL}), LATER))
    before = file.path.read_bytes()

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output"):
        file.write(AcceptedSerials(frozenset(), LATER))
    assert file.path.read_bytes() == before
