from collections.abc import Iterator

import pytest

from tests.journeys import running, two_nodes
from tests.journeys.running import Appliance
from tests.journeys.two_nodes import Outcome, Two


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


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """One appliance with two nodes and an endpoint on both, for whoever breaks parts of it."""
    with two_nodes.two_nodes(tmp_path_factory.mktemp("two")) as found:
        yield found


@pytest.fixture(scope="session")
def calm(two: Two) -> Outcome:
    """What a training makes that nothing disturbs."""
    two.train("calm")
    two.wait_until("calm", "SUCCEEDED")
    return two.outcome("calm")
