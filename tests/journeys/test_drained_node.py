"""A server is taken out while a job runs there, by commands; all processes are real."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.agent import until
from tests.fakes.site import TOY_AGENT, Person, Site, new_site
from tests.fakes.toy_kind import SLOW, STEPS
from tests.journeys.test_failed_job import train

pytestmark = pytest.mark.timeout(300)


async def shown(who: Person, *words: str) -> Any:
    said = await who.type(*words, "-o", "json")
    assert said.code == 0, said.err
    return json.loads(said.out)


async def start(site: Site, name: str) -> Path:
    return await site.start_agent(name, Path(sys.executable), TOY_AGENT)


async def test_a_server_is_drained_and_removed_and_its_job_goes_on_elsewhere(
    tmp_path: Path,
) -> None:
    async with new_site(tmp_path) as site:
        folder = await start(site, "n1")
        await start(site, "n2")
        admin = site.person("alice")
        await shown(admin, "node", "cordon", "n2", "--reason", "new disk")
        submitted = await admin.type(*train(site.tokens(), SLOW))
        assert submitted.code == 0, submitted.err

        # It returns when nothing runs there any more, and says meanwhile what does.
        drained = await admin.type("node", "drain", "n1", "--wait", "--timeout", "120s")
        assert drained.code == 0, drained.err
        assert "still there: projects/demo/jobs/t1 train " in drained.err
        assert "nothing runs on n1 any more" in drained.err
        node = await shown(admin, "node", "describe", "n1")
        assert (node["draining"], node["work"], node["devices_used"]) == (True, [], 0)
        job = await shown(admin, "job", "get", "t1")
        assert (job["state"], int(job["checkpoint_step"]) > 0) == ("STATE_QUEUED", True)

        # What waits goes on where it may. The toy kind makes no model, so it fails in the end.
        await shown(admin, "node", "uncordon", "n2")
        watched = await admin.type("job", "watch", "t1", "--timeout", "120s")
        assert f"step {STEPS}/{STEPS}" in watched.out, watched.err
        job = await shown(admin, "job", "get", "t1")
        assert (job["epoch"], job["nodes"]) == (2, ["nodes/n2"])

        # An agent that still runs there is refused and says so; the other node is not harmed.
        removed = await admin.type("node", "remove", "n1", "--yes")
        assert removed.code == 0, removed.err
        log = folder / "agent.log"
        await until(lambda: "appliance node create-join-token n1" in log.read_text())
        assert [each["name"] for each in await shown(admin, "node", "list")] == ["nodes/n2"]
