from collections.abc import Iterator

import pytest

from tests.fakes.control_api import FakeApi, serving_api


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving_api() as running:
        yield running
