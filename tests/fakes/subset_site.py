"""A site on which the kind of `docs/how-to/add-a-job-kind.md` runs, as a program.

Run by `tests/kinds/test_how_to.py` with that kind's code first on the path. Takes a JSON object as
its argument and prints one in its last line.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import select

from appliance.control.services.data.artifacts import Provenance
from appliance.control.store import tables
from tests.fakes.lab import write
from tests.fakes.site import AGENT, PROJECT, Site, new_site

LEADER = (
    "import runpy, sys; sys.path.insert(0, {copy!r});"
    " runpy.run_module('appliance.jobs', run_name='__main__', alter_sys=True)"
)
DOCUMENTS = 3


def add_text(site: Site) -> None:
    """The dataset `raw` with a version of text."""
    base, artifacts = site.appliance.control.base, site.appliance.control.work.artifacts
    lines = [json.dumps({"id": str(number), "text": "Hello."}) for number in range(DOCUMENTS)]
    with base.database.write() as transaction:
        version = artifacts.allocate(
            transaction, PROJECT, "dataset", "raw", Provenance("users/alice")
        )
    content = "".join(f"{line}\n" for line in lines).encode()
    digest = write(artifacts.writer(version), {"part-00000.jsonl": content})
    reader = artifacts.verify(version, digest)
    artifacts.sign(version, digest)
    facts = {"kind": "text", "documents": DOCUMENTS, "tokens": 0}
    origin: dict[str, Any] = {"kind": "upload", "inputs": []}
    with base.database.write() as transaction:
        artifacts.register(transaction, version, reader, facts, origin)


async def main(copy: str, folder: Path, commands: list[list[str]]) -> dict[str, Any]:
    """Type the commands; what they said, and what there is in the end."""
    async with new_site(folder) as site:
        add_text(site)
        leader = LEADER.format(copy=copy)
        await site.start_agent("n1", Path(sys.executable), ("-c", AGENT.format(leader=leader)))
        dora = site.person("dora", ("developer", PROJECT))
        said = []
        for words in commands:
            done = await dora.type(*words)
            said.append(done.out)
            if done.code:
                log = (folder / "n1" / "agent.log").read_text()
                raise SystemExit(f"{words}: {done.err}\n{log[-3000:]}")
        with site.appliance.control.base.database.read() as state:
            rows = state.all(select(tables.artifact_version))
        made = [row for row in rows if row.job]
        return {
            "said": said,
            "facts": {row.artifact: row.facts for row in made},
            "slots": [row.slot for row in made],
            "asked": [
                record["details"]["asked"]
                for record in site.appliance.records()
                if record["method"].endswith("/CreateJob") and record["kind"] == "result"
            ],
        }


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    found = asyncio.run(main(told["copy"], Path(told["folder"]), told["commands"]))
    sys.stdout.write(f"\n{json.dumps(found)}\n")
