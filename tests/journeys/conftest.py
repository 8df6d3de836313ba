from collections.abc import Iterator

import pytest

from tests.journeys import running
from tests.journeys.running import Appliance


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """An appliance of the module's own: up, with a project, and alice logged in."""
    with running.running(tmp_path_factory.mktemp("appliance")) as found:
        yield found
