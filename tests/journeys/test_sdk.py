"""The examples of the SDK's page, against a real appliance that knows no IPv4 address of its own.

One journey for two promises: `docs/sdk.md` runs from top to bottom as it is printed, and an
appliance made with `--listen ::1` serves people, a node, a job and answers.
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fakes.pages import ROOT, blocks
from tests.journeys.running import Appliance, running, texts

pytestmark = pytest.mark.timeout(600)
PAGE = ROOT / "docs" / "sdk.md"
EXAMPLES = [block for block in blocks(PAGE) if block.language == "python"]


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    with running(tmp_path_factory.mktemp("six"), None, "--listen", "::1") as found:
        yield found


def test_the_page_runs_as_it_is_printed(appliance: Appliance, tmp_path: Path) -> None:
    texts(tmp_path / "texts")
    shutil.copy(appliance.data / "ca.pem", tmp_path / "ca.pem")
    program = [f"SERVER = {appliance.server!r}", *(line for b in EXAMPLES for line in b.lines)]
    script = tmp_path / "page.py"
    script.write_text("\n".join(program))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "XDG_CONFIG_HOME": str(appliance.home / "alice" / "config"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "users/alice" in done.stdout
    assert "projects/demo/datasets/notes/versions/1 120 2" in done.stdout
    _ask_over_https(appliance, (tmp_path / "reader.token").read_text().strip())


def _ask_over_https(appliance: Appliance, token: str) -> None:
    """The OpenAI-compatible API answers under the address of IPv6 that its certificate names."""
    base = json.loads(appliance.alice.run("status", "-o", "json").stdout)["openai_base_url"]
    trust = ssl.create_default_context(cafile=appliance.data / "ca.pem")
    with httpx.Client(verify=trust, trust_env=False) as client:
        answer = client.get(f"{base}/models", headers={"authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json()["object"]) == (200, "list")


def test_everything_is_reached_at_the_address_that_was_given(appliance: Appliance) -> None:
    alice = appliance.alice
    assert appliance.server.startswith("[::1]:")
    (node,) = json.loads(alice.run("node", "list", "-o", "json").stdout)
    assert (node["state"], node["address"]) == ("STATE_READY", "::1")
    system = json.loads(alice.run("status", "-o", "json").stdout)
    assert system["gateway_address"].startswith("[::1]:")
    assert system["openai_base_url"].startswith("https://[::1]:")
    records = json.loads(alice.run("audit", "list", "--limit", "20", "-o", "json").stdout)
    sources = {record["source"].rpartition(":")[0] for record in records if record["source"]}
    assert sources == {"ipv6:[::1]"}
