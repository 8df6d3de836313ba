"""A repeated request id gets the first answer, and only its own."""

import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from appliance.control.services.system.sweeper import Sweeper
from appliance.control.store import requests
from appliance.control.store.database import Database
from appliance.core.errors import InvalidInput
from tests.fakes.state import START, make_state

ID = "0b9e5e9e-53f5-4b5e-8a0e-2f4a3f1f0c11"


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Database]:
    database = make_state(tmp_path)
    yield database
    database.close()


def _remember(
    state: Database, request_id: str = ID, *, principal: str = "user:alice", now: datetime = START
) -> None:
    with state.write() as transaction:
        requests.remember(
            transaction,
            principal=principal,
            method="/x/Create",
            request_id=request_id,
            payload=b"in",
            response=b"out",
            now=now,
        )


def _answered(
    state: Database,
    request_id: str = ID,
    *,
    principal: str = "user:alice",
    payload: bytes = b"in",
    now: datetime = START,
) -> bytes | None:
    with state.read() as reading:
        return requests.answered(
            reading,
            principal=principal,
            method="/x/Create",
            request_id=request_id,
            payload=payload,
            now=now,
        )


def test_an_answer_is_none_after_a_day_also_before_it_is_swept(state: Database) -> None:
    _remember(state)
    later = START + requests.KEPT
    assert _answered(state, now=later) == b"out"
    later += timedelta(seconds=1)
    assert _answered(state, now=later) is None
    _remember(state, now=later)
    assert _answered(state, now=later) == b"out"


def test_the_same_request_gets_the_same_answer(state: Database) -> None:
    assert _answered(state) is None
    _remember(state)
    assert _answered(state) == b"out"
    assert _answered(state, ID.upper()) == b"out"


def test_other_contents_under_the_same_id_are_refused(state: Database) -> None:
    _remember(state)
    with pytest.raises(InvalidInput, match="was used for a different request"):
        _answered(state, payload=b"other")


@pytest.mark.attack
def test_an_answer_belongs_to_one_caller(state: Database) -> None:
    _remember(state)
    assert _answered(state, principal="user:mallory") is None


def test_no_id_means_no_memory(state: Database) -> None:
    _remember(state, "")
    assert _answered(state, "") is None


@pytest.mark.parametrize("wrong", ["x", ID[:-1], ID + "0", ID.replace("-", ""), " " + ID, "٣" * 36])
def test_what_is_no_uuid_is_refused(state: Database, wrong: str) -> None:
    with pytest.raises(InvalidInput, match="request_id: must be a UUID"):
        _answered(state, wrong)


def test_answers_are_forgotten_after_a_day(state: Database) -> None:
    _remember(state)
    now = [START + timedelta(hours=23)]
    sweeper = Sweeper(state, lambda: now[0], lambda: 0.0)
    sweeper.sweep()
    assert _answered(state) is not None
    before = state.generation
    now[0] = START + timedelta(hours=25)
    sweeper.sweep()
    assert _answered(state) is None
    assert state.generation == before + 1
    sweeper.sweep()
    assert state.generation == before + 1


@pytest.mark.attack
def test_of_one_caller_some_answers_are_kept(
    state: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "MAX_ANSWERS", 10)
    identifiers = [str(uuid.UUID(int=number)) for number in range(30)]
    for number, identifier in enumerate(identifiers):
        _remember(state, identifier, now=START + timedelta(seconds=number))
    Sweeper(state, lambda: START + timedelta(minutes=1), lambda: 0.0).sweep()
    kept = [identifier for identifier in identifiers if _answered(state, identifier) is not None]
    assert kept == identifiers[20:]
