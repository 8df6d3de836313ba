"""What the tests of identity share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from appliance.control.auth.roles import Roles
from appliance.control.store.database import Database
from tests.fakes.state import StandingClock, make_state


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Database]:
    database = make_state(tmp_path)
    yield database
    database.close()


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture(scope="session")
def roles() -> Roles:
    return Roles.load()


@pytest.fixture
def broken_writes(state: Database) -> dict[str, int]:
    """Makes the n-th writing statement from now on fail, as a full disk would."""
    left = {"count": -1}

    def fail(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.lstrip().upper().startswith(("SELECT", "BEGIN")):
            left["count"] -= 1
            if left["count"] == 0:
                raise OSError("injected")

    event.listen(state.migrator(), "before_cursor_execute", fail)
    return left
