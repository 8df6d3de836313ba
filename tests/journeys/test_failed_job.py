"""A job that fails in its ranks says why, and shows what they wrote to whoever may read it."""

import re
import sys
from pathlib import Path

import pytest

from tests.fakes.site import PROJECT, TOY_AGENT, Site, new_site
from tests.fakes.toy_kind import BUG, TEXT

pytestmark = pytest.mark.timeout(180)

NOT_ALLOWED, NOT_FOUND = 5, 6
JOB = f"projects/{PROJECT}/jobs/t1"
WHY = (
    r"rank 1 crashed with KeyError in appliance\.jobs\.runtime\.ranks, line \d+,"
    r" also after 3 restarts"
)


def train(dataset: str, seed: int) -> list[str]:
    """Two ranks of the toy kind, which reads nothing of its spec but the seed."""
    options = {
        "dataset": dataset,
        "output-model": "small",
        "data": 2,
        "seed": seed,
        "layers": 2,
        "hidden-size": 32,
        "intermediate-size": 64,
        "attention-heads": 4,
        "key-value-heads": 2,
        "context-length": 32,
        "steps": 4,
        "batch-size": 4,
        "sequence-length": 16,
    }
    return ["job", "train", "t1", *(f"--{name}={value}" for name, value in options.items())]


async def test_a_failed_job_from_its_ranks_to_the_person_who_reads_them(tmp_path: Path) -> None:
    async with new_site(tmp_path) as site:
        state = await site.start_agent("n1", Path(sys.executable), TOY_AGENT)
        dora = site.person("dora", ("developer", PROJECT))
        vera = site.person("vera", ("viewer", PROJECT))
        dataset = site.tokens()

        failed = await dora.type(*train(dataset, BUG), "--wait")
        assert failed.code == 1
        said = re.fullmatch(
            rf"(?s).*error: {JOB} failed: {WHY}\nhint: `appliance job logs t1` prints the last"
            r" output of its ranks\n",
            failed.err,
        )
        assert said, failed.err
        assert TEXT not in failed.out + failed.err

        read = await dora.type("job", "logs", "t1")
        assert (read.code, "==> start 1 on n1 <==\n" in read.err) == (0, True), read.err
        assert f"[rank 1]     KeyError: '{TEXT}'\n" in read.out
        assert re.search(
            r"^\[rank 0\] .*rank 0 ended after rank 1: RuntimeError$", read.out, re.MULTILINE
        )
        last = await dora.type("job", "logs", "t1", "--rank", "1", "--tail", "1")
        # One record of a rank's log is several lines for a person.
        assert last.out.startswith("[rank 1] ")
        assert last.out.endswith(f"KeyError: '{TEXT}'\n")
        assert last.out in read.out

        told = await dora.type("job", "describe", "t1")
        assert re.search(r"STARTED .* on n1: ranks 0-1, devices 0, 1; begins anew", told.out), (
            told.out
        )
        assert re.search(rf"FAILED .* {WHY}", told.out), told.out

        seen = await vera.type("job", "get", "t1")
        assert re.search(WHY, seen.out)
        refused = await vera.type("job", "logs", "t1")
        assert (refused.code, refused.out) == (NOT_ALLOWED, "")
        assert "jobs.readLogs" in refused.err
        assert TEXT not in seen.out + seen.err + refused.err
        assert "hint" not in seen.err

        gone = await dora.type("job", "delete", "t1")
        assert gone.code == 0, gone.err
        lost = await dora.type("job", "logs", "t1")
        assert (lost.code, TEXT in lost.out) == (NOT_FOUND, False)

        check_where_it_lies(site, state)
        check_what_is_recorded(site)


def check_where_it_lies(site: Site, state: Path) -> None:
    """In clear in the private log on the node, and nowhere else."""
    files = [path for path in site.folder.rglob("*") if path.is_file()]
    held = [path for path in files if TEXT.encode() in path.read_bytes()]
    assert [path.parent.parent for path in held] == [state / "state" / "runs"]
    assert site.appliance.folder / "state.db" in files


def check_what_is_recorded(site: Site) -> None:
    """Who read it, and who tried to."""
    found = [
        (each["kind"], each["principal"], each["outcome"], each["resource"])
        for each in site.appliance.records()
        if each["method"].endswith("/ReadJobLogs")
    ]
    read = [("intent", "users/dora", "", JOB), ("result", "users/dora", "OK", JOB)]
    assert found[:5] == [*read, *read, ("denied", "users/vera", "PERMISSION_DENIED", JOB)]
