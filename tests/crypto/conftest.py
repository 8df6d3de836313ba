"""What the tests of the crypto package share."""

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.crypto.sealed_place import SealedPlace

HERE = Path(__file__).parent


@pytest.fixture
def key() -> bytes:
    return bytes(range(32))


@pytest.fixture
def place() -> SealedPlace:
    return SealedPlace("research", "4f1c", "part-00000.jsonl")


@pytest.fixture(scope="session")
def known_answers() -> dict[str, Any]:
    answers: dict[str, Any] = json.loads((HERE / "known_answers.json").read_text())
    return answers
