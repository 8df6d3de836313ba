from collections.abc import Iterator

import pytest

from tests.journeys import running
from tests.journeys.running import Appliance


@pytest.fixture(scope="module")
def appliance(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Appliance]:
    """An appliance of the module's own: up, with a project, and alice logged in.

    A module may say `SURROUNDINGS`, variables of the environment in which all of it runs.
    """
    surroundings = getattr(request.module, "SURROUNDINGS", {})
    with running.running(tmp_path_factory.mktemp("appliance"), surroundings) as found:
        yield found
