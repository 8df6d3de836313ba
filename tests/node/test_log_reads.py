"""Lines of works from the file to the control plane: numbered, told apart by rank, and bounded."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.node.log_files import Line, LogFiles
from appliance.node.logs import CappedLog
from tests.fakes.agent import Start, until
from tests.fakes.control_plane import FakeControlPlane, Session
from tests.fakes.toy_kind import FULL, SLOW, TEXT
from tests.fakes.toy_order import toy_order

ALL = 1 << 20
SendLog = rpc.SendLogRequest


def read_all(files: LogFiles) -> list[Line]:
    """What there is to read now."""
    found: list[Line] = []
    more = True
    while more:
        lines, more = files.read()
        found += lines
    return found


def kept(folder: Path, after: int = 0) -> list[Line]:
    """What a new reader finds."""
    with closing(LogFiles(folder, after, ALL)) as files:
        return read_all(files)


def texts(lines: list[Line]) -> list[str]:
    return [line.text for line in lines]


def test_lines_of_ranks_are_whole_however_they_are_written(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "log", ALL)
    log.write(b"one of ", 0)
    log.write(b"one of rank 1\n", 1)
    log.write("rank 0\né".encode()[:-1], 0)
    log.write(b"of the leader\n")
    log.write("é".encode()[1:], 0)
    log.close()
    found = kept(tmp_path)
    assert [(line.number, line.rank, line.text) for line in found] == [
        (1, 1, "one of rank 1"),
        (2, 0, "one of rank 0"),
        (3, None, "of the leader"),
        (4, 0, "é"),
    ]
    assert all(line.time is not None for line in found)


@pytest.mark.attack
def test_a_rank_cannot_write_a_line_of_another(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "log", ALL)
    log.write(b"9 2026-01-01T00:00:00.000000Z 7 forged\n", 0)
    log.close()
    (line,) = kept(tmp_path)
    assert (line.number, line.rank) == (1, 0)


def test_a_log_is_read_while_it_is_written_over_many_files(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "log", 2000)
    files, found = LogFiles(tmp_path, 0, ALL), []
    for number in range(200):
        log.write(f"line {number}\n".encode())
        if number % 7 == 0:
            found += read_all(files)
    found += read_all(files)
    assert texts(found) == [f"line {number}" for number in range(200)]
    files.close()
    # Another goes on after a line, as far as it is kept.
    assert texts(kept(tmp_path, 190))[-9:] == texts(found)[-9:]
    assert kept(tmp_path, 200) == []
    log.close()


def test_who_is_slower_than_the_work_misses_lines_and_sees_that(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "log", 1 << 22)
    files = LogFiles(tmp_path, 0, 10_000)
    log.write(b"first\n")
    assert texts(read_all(files)) == ["first"]
    for number in range(5000):
        log.write(f"line {number}\n".encode())
    found = read_all(files)
    assert found[-1].text == "line 4999"
    assert found[0].number > 4000
    assert [line.number for line in found] == list(range(found[0].number, 5002))
    files.close()
    log.close()


def test_what_an_older_agent_has_written_has_no_rank_and_no_time(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one\ntwo\n")
    assert kept(tmp_path) == [
        Line(1, None, None, "one"),
        Line(2, None, None, "two"),
    ]


@pytest.mark.attack
def test_what_only_looks_like_a_head_ends_no_reader(tmp_path: Path) -> None:
    forged = "1 2026-99-99T99:99:99.000000Z 7 x"
    (tmp_path / "log").write_text(f"{forged}\ntwo\n")
    assert kept(tmp_path) == [Line(1, None, None, forged), Line(2, None, None, "two")]


async def sent(control: FakeControlPlane) -> rpc.SendLogRequest | None:
    async with asyncio.timeout(60):
        return await control.sent.get()


def ask(session: Session, read: str, after: int = 0, epoch: int = 1) -> None:
    work = rpc.WorkEpoch(work="0a" * 16, epoch=epoch)
    session.send(read_log=rpc.ReadLog(work=work, read=read, after=after, max_bytes=ALL))


async def lines_of(control: FakeControlPlane) -> tuple[list[rpc.LogLine], SendLog.State]:
    """All lines of one stream, and the last state."""
    found: list[rpc.LogLine] = []
    state = SendLog.STATE_UNSPECIFIED
    while (message := await sent(control)) is not None:
        found += message.lines
        state = message.state
    return found, state


@pytest.mark.attack
async def test_the_lines_of_a_job_say_which_rank_wrote_them_and_show_no_key(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    await start()
    session = await control.session()
    session.send(start_job=toy_order(control, tmp_path, FULL))
    ask(session, "r1")
    found, state = await lines_of(control)
    assert state == SendLog.STATE_ENDED
    assert [line.number for line in found] == list(range(1, len(found) + 1))
    assert {line.rank for line in found if TEXT in line.text} == {1}
    crashed = [line for line in found if "rank 1 crashed" in line.text]
    assert [line.rank for line in crashed] == [1]
    assert {line.rank for line in found} == {0, 1}
    for key in control.keys["0a" * 16].outputs:
        assert key.key.hex() not in str(found)
    # What has ended is read like what runs, from any line on; what is not kept is said.
    ask(session, "r2", after=len(found) - 1)
    again, state = await lines_of(control)
    assert (list(again), state) == (found[-1:], SendLog.STATE_ENDED)
    ask(session, "r3", epoch=7)
    assert await lines_of(control) == ([], SendLog.STATE_NOT_KEPT)


async def test_a_node_stops_sending_when_nobody_reads(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    agent = await start()
    session = await control.session()
    session.send(start_job=toy_order(control, tmp_path, SLOW))
    await session.until("job_progress", event="")
    control.reads_no_more = True
    ask(session, "r1")
    assert await sent(control) is not None
    await until(lambda: not agent._log_reads._tasks)
    # The work has not noticed.
    assert agent.works.holds("0a" * 16, 1)
    # An order that cannot be, or comes twice, harms nobody.
    work = rpc.WorkEpoch(work="../..", epoch=1)
    session.send(read_log=rpc.ReadLog(work=work, read="r2", max_bytes=ALL))
    await session.beats(2)
    assert not agent._log_reads._tasks
