"""What a gateway shows, from files of a site: refused ones are looked at again."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.core.errors import InvalidInput
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import Authority, make_csr, new_private_key
from appliance.crypto.reading import SHOWN_EARLY, is_pair, not_before, renew_time
from appliance.gateway import front as fronts
from appliance.gateway.front import Front, SiteFiles
from tests.fakes.gateway import until

GATEWAY = Principal(PrincipalKind.GATEWAY, "gateway-1")
AUTHORITY, SITE = Authority.create("lab"), Authority.create("site")


class Desk:
    """A front with files of a site; a clock, and how far the gateway's is ahead of it."""

    def __init__(self, folder: Path) -> None:
        self.now = datetime.now(UTC)
        self.ahead = timedelta()
        self.files = SiteFiles(folder / "site.pem", folder / "site.key")
        self.front = Front(
            folder,
            self._issue,
            AUTHORITY.certificate_pem,
            self.files,
            lambda: self.now + self.ahead,
        )

    async def _issue(self, request: str) -> str:
        made = AUTHORITY.issue(
            request.encode(), GATEWAY, server=True, client=False, early=SHOWN_EARLY, now=self.now
        )
        return made.decode()

    def write(self, begins: timedelta = timedelta(), mode: int = 0o600) -> None:
        key = new_private_key()
        begin = self.now + begins
        certificate = SITE.issue(make_csr(key), GATEWAY, server=True, client=False, now=begin)
        self.files.certificate.write_bytes(certificate)
        self.files.key.write_bytes(key)
        self.files.key.chmod(mode)

    def shows_site(self) -> bool:
        self.front.reload_site_files()
        return self.front.context is self.front._theirs


@pytest.fixture
async def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    await made.front.renew()
    return made


async def test_a_key_that_others_may_read_is_taken_once_they_may_not(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.write(mode=0o644)
    for _ in range(10):
        assert not desk.shows_site()
    # Said once, not at every look.
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    desk.files.key.chmod(0o600)
    assert desk.shows_site()
    desk.files.key.unlink()
    for _ in range(10):
        assert desk.shows_site()
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 2


async def test_a_pair_that_begins_later_is_taken_when_it_begins(desk: Desk) -> None:
    desk.write(begins=timedelta(hours=1))
    assert not desk.shows_site()
    desk.now += timedelta(hours=1)
    assert desk.shows_site()


async def test_what_is_shown_holds_for_a_client_whose_clock_is_behind(desk: Desk) -> None:
    """A new one each day: a client that is an hour behind would be refused each day."""
    assert not_before(desk.front.pair.certificate) <= not_before(AUTHORITY.certificate_pem)
    assert not desk.front._is_due()
    desk.now += timedelta(days=2)
    assert desk.front._is_due()


async def test_a_clock_that_was_ahead_does_not_put_the_next_one_off(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fronts, "SETTLED_SECONDS", 0.1)
    monkeypatch.setattr(fronts, "LOOK_SECONDS", 0.02)
    first = desk.front.pair
    desk.ahead = timedelta(days=30)
    running = asyncio.create_task(desk.front.run())
    await until(lambda: desk.front.pair is not first)
    made = desk.front.pair
    desk.ahead = timedelta()
    desk.now += timedelta(days=3)
    await until(lambda: desk.front.pair is not made)
    running.cancel()


def test_a_certificate_begins_early_but_not_before_its_authority() -> None:
    key, later = new_private_key(), datetime.now(UTC) + timedelta(days=3)
    made = AUTHORITY.issue(
        make_csr(key), GATEWAY, server=True, client=False, early=SHOWN_EARLY, now=later
    )
    assert abs(not_before(made) - (later - SHOWN_EARLY)) < timedelta(seconds=2)
    assert abs(renew_time(made, SHOWN_EARLY) - (later + timedelta(days=1))) < timedelta(seconds=2)
    soon = AUTHORITY.issue(make_csr(key), GATEWAY, server=True, client=False, early=SHOWN_EARLY)
    assert not_before(soon) >= not_before(AUTHORITY.certificate_pem) - timedelta(seconds=1)


def test_a_flipped_bit_in_a_certificate_is_refused_and_nothing_else() -> None:
    key = new_private_key()
    certificate = AUTHORITY.issue(make_csr(key), GATEWAY, server=True, client=False)
    begin = certificate.index(b"\n") + 1
    for place in range(begin, len(certificate) - 28, 3):
        changed = bytearray(certificate)
        changed[place] ^= 1 << (place % 6)
        try:
            assert is_pair(key, bytes(changed)) in (True, False)
        except InvalidInput:
            continue
