"""A server that lacks what a kind of work needs says so, and the work waits for another one."""

import json
import sys
from pathlib import Path

import pytest

from appliance.control.events import NODES
from appliance.core.needs import REPAIR
from tests.fakes.site import TOY_AGENT, Person, Site, new_site
from tests.fakes.toy_kind import SLOW
from tests.fakes.without import virtual_environment
from tests.journeys.test_failed_job import train

pytestmark = pytest.mark.timeout(300)

AGENT = ("-m", "appliance.node", "--config")
NO_TORCH = f"torch is not installed: {REPAIR}"
BROKEN = f"vllm cannot be imported (OSError): {REPAIR}"


async def node(who: Person, name: str) -> dict[str, str]:
    """Kind of work -> what the node lacks for it, as the command shows it."""
    shown = json.loads((await who.type("node", "get", name, "-o", "json")).out)
    assert shown["state"] == "STATE_READY"
    for each in shown["capabilities"]:
        assert each["available"] is not bool(each["reason"])
    return {each["kind"]: each["reason"] for each in shown["capabilities"]}


async def said_of(site: Site, name: str, kind: str, reason: str) -> None:
    """Until a node has said this of a kind of work."""
    with site.appliance.control.base.events.watch(NODES) as watch:
        while True:
            facts = site.appliance.control.work.fleet.facts(name)
            if facts is not None and (facts.lacks or {}).get(kind) == reason:
                return
            await watch.wait(1.0)


async def test_a_node_without_torch_gets_no_job_and_the_job_says_why(tmp_path: Path) -> None:
    async with new_site(tmp_path) as site:
        python = virtual_environment(tmp_path / "python", "torch")
        await site.start_agent("n1", python, AGENT)
        alice = site.person("alice")
        # At once: what is not there is found without importing anything.
        lacks = await node(alice, "n1")
        assert {lacks[kind] for kind in ("evaluate", "prepare", "quantize", "train")} == {NO_TORCH}

        submitted = await alice.type(*train(site.tokens(), SLOW))
        assert submitted.code == 0, submitted.err
        job = {"state_reason": ""}
        while not job["state_reason"]:
            job = json.loads((await alice.type("job", "get", "t1", "-o", "json")).out)
        assert (job["state"], job["state_reason"]) == (
            "STATE_QUEUED",
            f"waiting for a node that can run train jobs; node n1: {NO_TORCH}",
        )
        listed = await alice.type("node", "list")
        assert "nothing" in listed.out
        assert NO_TORCH in listed.out

        # Another server has torch: the job goes there at once.
        await site.start_agent("n2", Path(sys.executable), TOY_AGENT)
        await alice.type("job", "watch", "t1", "--timeout", "60s")
        job = json.loads((await alice.type("job", "get", "t1", "-o", "json")).out)
        assert job["epoch"] == 1
        assert job["nodes"] == ["nodes/n2"]


async def test_a_package_that_is_there_and_broken_is_found_by_importing_it(tmp_path: Path) -> None:
    async with new_site(tmp_path) as site:
        python = virtual_environment(tmp_path / "python", broken="vllm")
        await site.start_agent("n1", python, AGENT)
        await said_of(site, "n1", "replica", BROKEN)
        alice = site.person("alice")
        lacks = await node(alice, "n1")
        assert lacks == {
            **dict.fromkeys(("evaluate", "prepare", "quantize", "train"), ""),
            "replica": BROKEN,
        }
