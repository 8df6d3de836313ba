"""A gateway's certificates are replaced while it runs: calls in work and open connections go on."""

from __future__ import annotations

import asyncio
import errno
import functools
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import Authority, make_csr, new_private_key
from appliance.crypto.reading import not_after, serial_of
from appliance.gateway import front as fronts
from appliance.gateway import identity
from appliance.gateway.config import FrontFiles, GatewayConfig
from appliance.gateway.identity import begin
from appliance.machine.identity import Identity, IdentityStore
from tests.fakes.gateway import Stage, configuration, stage, until
from tests.fakes.ports import free_port
from tests.fakes.routing import ENDPOINT
from tests.fakes.wire import authority, hosts_of, shown
from tests.fakes.worker import Script, Worker, story

STREAMS, TOKENS = 16, 100


async def ask(found: Stage, tokens: int) -> tuple[list[int], int]:
    """The tokens of one answer, and how often it moved."""
    ids: list[int] = []
    moves = 0
    async with found.client() as client:
        async for piece in client.generate(ENDPOINT, prompt="Hallo", max_tokens=tokens):
            ids += piece.token_ids
            moves = piece.totals.continuations
    return ids, moves


async def shown_by(found: Stage) -> tuple[str, str]:
    """Serial numbers of what both fronts show to new connections."""
    ca, gateway = authority().certificate_pem, found.gateway
    ports = (gateway.grpc_port, gateway.http.port)
    first, second = [await asyncio.to_thread(shown, port, ca) for port in ports]
    return first, second


async def test_sixteen_answers_and_an_open_connection_outlive_both_renewals(
    tmp_path: Path,
) -> None:
    workers = [Worker("a", Script(seconds=0.02)), Worker("b", Script(seconds=0.02))]
    async with stage(tmp_path, *workers) as found:
        gateway = found.gateway
        before = serial_of(gateway.keeper.identity.certificate_pem)
        assert await shown_by(found) == (before, before)  # of 0.1.0: one for everything
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            gateway.http.port,
            ssl=ssl.create_default_context(cafile=found.folder / "ca.pem"),
        )
        answers = [asyncio.create_task(ask(found, TOKENS)) for _ in range(STREAMS)]
        await until(lambda: sum(worker.running for worker in workers) == STREAMS)
        await gateway.keeper.renew()
        after = serial_of(gateway.keeper.identity.certificate_pem)
        assert after != before
        await until(lambda: found.control.watched[-1] == after)
        await until(lambda: serial_of(gateway.front.pair.certificate) != before)
        new = serial_of(gateway.front.pair.certificate)
        assert await shown_by(found) == (new, new)
        assert [task for task in answers if task.done()] == []
        assert await asyncio.gather(*answers) == [(story(5, TOKENS), 0)] * STREAMS
        writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b" 401 " in await asyncio.wait_for(reader.readline(), 10)
        writer.close()
        # The links under the old certificate are gone, and the new ones answer.
        await until(lambda: len(gateway.fleet.links) == 2)
        assert all(len(worker.metadata) == 2 for worker in workers)
        assert await ask(found, 5) == (story(5, 5), 0)


async def test_what_it_had_before_is_taken_over_and_only_read(tmp_path: Path) -> None:
    config = configuration(tmp_path, free_port())
    assert config.key
    assert config.certificate
    held = config.certificate.read_bytes()
    keeper, front = await begin(config)
    assert keeper.identity.certificate_pem == front.pair.certificate == held
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state" / fronts.FILE).stat().st_mode & 0o777 == 0o600
    config.certificate.unlink()
    config.key.unlink()
    # It starts from its own folder, also while the control plane is away.
    again, shown_again = await begin(config)
    assert again.identity == keeper.identity
    assert shown_again.pair.certificate == held


async def test_what_it_had_before_is_taken_over_when_the_disk_has_space_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would wait for a join token for ever."""
    config, tries = configuration(tmp_path, free_port()), []
    keep = IdentityStore.keep

    def full(store: IdentityStore, held: Identity) -> None:
        tries.append(held)
        if len(tries) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        keep(store, held)

    monkeypatch.setattr(IdentityStore, "keep", full)
    monkeypatch.setattr(identity, "STORE_AGAIN_SECONDS", 0.01)
    keeper, front = await begin(config)
    assert len(tries) == 3
    assert keeper.identity.certificate_pem == front.pair.certificate


async def test_what_it_had_before_is_read_when_the_disk_answers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, tries = configuration(tmp_path, free_port()), []
    read = identity.read_secret

    def fails(path: Path) -> bytes:
        tries.append(path)
        if len(tries) < 3:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(identity, "read_secret", fails)
    monkeypatch.setattr(identity, "STORE_AGAIN_SECONDS", 0.01)
    await begin(config)
    assert len(tries) == 3


async def test_a_key_of_before_that_is_not_its_certificates_is_no_identity(tmp_path: Path) -> None:
    config = configuration(tmp_path, free_port())
    assert config.key
    config.key.write_bytes(new_private_key())
    waiting = asyncio.create_task(begin(config))
    await asyncio.sleep(0.3)
    assert not waiting.done()  # for a join token
    waiting.cancel()
    assert not (tmp_path / "state" / "identity.json").exists()


async def test_what_it_had_before_goes_when_it_is_replaced(tmp_path: Path) -> None:
    async with stage(tmp_path, Worker("a")) as found:
        config = found.config
        assert config.key
        assert config.certificate
        files = (config.key, config.certificate)
        await begin(config)
        assert all(file.exists() for file in files)
        await found.gateway.keeper.renew()
        await begin(config)
        assert not any(file.exists() for file in files)
        await begin(config)
        key, certificate = new_private_key(), Authority.create("site")
        files[0].write_bytes(key)
        files[1].write_bytes(certificate.certificate_pem)
        await begin(config)
        assert all(file.exists() for file in files)


async def test_a_folder_that_cannot_be_made_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = replace(configuration(tmp_path, free_port()), state=tmp_path / "file" / "state")
    with pytest.raises(FailedPrecondition, match="set `state` to a folder"):
        await begin(config)


async def test_a_front_that_was_cut_while_it_was_written_is_asked_for_anew(tmp_path: Path) -> None:
    async with stage(tmp_path, Worker("a")) as found:
        before = found.gateway.front.pair
        (tmp_path / "state" / fronts.FILE).write_bytes(before.key)
        config = configuration_of(found)
        _, front = await begin(config)
        assert front.pair.certificate != before.certificate
        assert hosts_of(front.pair.certificate) == (["localhost"], ["127.0.0.1", "::1"])


def configuration_of(found: Stage) -> GatewayConfig:
    return configuration(found.folder, found.control.port)


async def test_a_renewal_that_fails_changes_nothing_and_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fronts, "ASK_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(fronts, "LOOK_SECONDS", 0.05)
    async with stage(tmp_path, Worker("a")) as found:
        front = found.gateway.front
        before, found.control.broken = front.pair, True
        keeper = found.gateway.keeper
        held = keeper.identity
        front.renew_soon()
        await keeper.renew()
        await asyncio.sleep(0.3)
        assert front.pair is before
        assert keeper.identity == held == keeper.store.load()
        assert (await ask(found, 3))[0] == story(5, 3)
        monkeypatch.setattr(front, "_is_due", lambda: front.pair is before)
        found.control.broken = False
        await until(lambda: front.pair is not before)
        assert not_after(front.pair.certificate) - datetime.now(UTC) < timedelta(days=10)


SITE = Authority.create("site")


def site_pair(folder: Path, **issued: object) -> FrontFiles:
    """A pair of the site's PKI, written over the one before."""
    key = new_private_key()
    certificate = SITE.issue(
        make_csr(key),
        Principal(PrincipalKind.GATEWAY, "front"),
        server=True,
        client=False,
        ips=["127.0.0.1"],
        **issued,  # type: ignore[arg-type]  # of `issue`
    )
    files = FrontFiles(folder / "site.pem", folder / "site.key")
    for path, data in ((files.certificate, certificate), (files.key, key)):
        assert path is not None
        new = path.with_suffix(".new")
        new.touch(0o600)
        new.write_bytes(data)
        new.rename(path)
    return files


async def test_a_pair_of_the_site_is_shown_to_openai_clients_and_swapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fronts, "LOOK_SECONDS", 0.05)
    files = site_pair(tmp_path)
    assert files.certificate
    assert files.key

    async with stage(tmp_path, Worker("a"), front=files) as found:
        port, ca = found.gateway.http.port, SITE.certificate_pem

        def now_shown() -> str:
            return shown(port, ca)

        first = await asyncio.to_thread(now_shown)
        assert first == serial_of(files.certificate.read_bytes())
        # The appliance's own command and library believe the appliance's authority alone.
        assert (await ask(found, 3))[0] == story(5, 3)
        before = found.gateway.front.context
        site_pair(tmp_path)
        second = serial_of(files.certificate.read_bytes())
        await until(lambda: found.gateway.front.context is not before)
        assert await asyncio.to_thread(now_shown) == second
        for breaks, why in (
            (lambda: files.key.write_bytes(new_private_key()), "is not that of its key"),
            (lambda: files.certificate.write_bytes(b"none"), "they are not a certificate and"),
            (files.certificate.unlink, "the one before stays"),
            (
                lambda: site_pair(
                    tmp_path,
                    now=datetime.now(UTC) - timedelta(days=9),
                    lifetime=timedelta(days=8),
                ),
                "the certificate ended on",
            ),
        ):
            caplog.clear()
            breaks()
            await until(lambda why=why: why in caplog.text)  # type: ignore[misc]  # bound now
            assert await asyncio.to_thread(now_shown) == second


async def test_a_broken_pair_at_the_start_leaves_the_appliance_s_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = FrontFiles(tmp_path / "absent.pem", tmp_path / "absent.key")
    async with stage(tmp_path, Worker("a"), front=files) as found:
        assert "the appliance's own is shown" in caplog.text
        mine = serial_of(found.gateway.front.pair.certificate)
        assert await shown_by(found) == (mine, mine)


def test_one_file_without_the_other_is_refused() -> None:
    with pytest.raises(InvalidInput, match="belong together"):
        FrontFiles(Path("a"), None)


async def test_a_gateway_that_waits_for_its_token_stops_when_told(tmp_path: Path) -> None:
    config = configuration(tmp_path, free_port())
    assert config.key
    config.key.unlink()
    beginning = asyncio.create_task(begin(config))
    await asyncio.sleep(0.2)
    assert not beginning.done()
    beginning.cancel()
    await asyncio.gather(beginning, return_exceptions=True)


async def test_under_a_clock_that_is_wrong_it_asks_once_and_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made now does not hold by a clock that is ahead either."""
    async with stage(tmp_path, Worker("a")) as found:
        config, asked = configuration_of(found), found.control.fronts
        ahead = datetime.now(UTC) + timedelta(days=400)
        store = functools.partial(IdentityStore, now=lambda: ahead)
        monkeypatch.setattr(identity, "IdentityStore", store)
        async with asyncio.timeout(10):
            _, front = await begin(config)
        assert found.control.fronts == asked + 1
        assert not_after(front.pair.certificate) < ahead
