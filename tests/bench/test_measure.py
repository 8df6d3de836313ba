"""How a bench judges itself, and what happens to one that does not end."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as benches
from bench import measure
from bench.measure import AT_LEAST, AT_MOST, Bar, Contender, Outcome, at_least, compare


def bar(**changes: Any) -> Bar:
    values: dict[str, Any] = {
        "name": "ours / theirs",
        "value": 1.0,
        "unit": "times",
        "relation": AT_LEAST,
        "limit": 1.0,
        "rounds": 5,
    }
    return Bar(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, True),
        ({"value": 0.99}, False),
        ({"relation": AT_MOST, "value": 1.0}, True),
        ({"relation": AT_MOST, "value": 1.01}, False),
        ({"rounds": 4}, False),
        ({"value": math.nan}, False),
        ({"value": math.inf}, False),
        ({"why": "it was not done"}, False),
    ],
)
def test_a_bar_holds_when_its_figure_is_there_of_enough_rounds_and_reaches_it(
    changes: dict[str, Any], *, holds: bool
) -> None:
    assert bar(**changes).holds is holds


def test_a_bar_is_written_as_json() -> None:
    assert bar(value=1.25).as_json() == {
        "name": "ours / theirs",
        "value": 1.25,
        "unit": "times",
        "goal": ">= 1",
        "holds": True,
        "rounds": 5,
    }
    lost = bar(value=math.nan, why="it was not done").as_json()
    assert (lost["value"], lost["holds"], lost["why"]) == (None, False, "it was not done")


def test_contenders_run_in_turn_and_the_ratio_is_of_each_round() -> None:
    order: list[str] = []

    def contender(name: str, *rates: float) -> Contender:
        left = [1.0, *rates]

        def rate() -> float:
            order.append(name)
            return left.pop(0)

        return Contender(name, rate)

    table = compare("t", "x/s", contender("ours", 2, 9, 4), contender("other", 1, 3, 4), rounds=3)
    assert order == ["ours", "other"] * 4
    assert at_least(table, "other", 2.0) == bar(name="ours / other", value=2.0, limit=2.0, rounds=3)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (measure, benches):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    return tmp_path


def test_a_bench_writes_its_bars_beside_its_figures(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(measure.LIMITS, "some", 60)
    assert measure.run("some", lambda: Outcome([bar()], {"rows": [1]})) == 0
    written = json.loads((results / "some.json").read_text())
    assert (written["bench"], written["rows"]) == ("some", [1])
    assert written["bars"] == [bar().as_json()]
    assert written["machine"]["cores"] >= 1
    assert measure.run("some", lambda: Outcome([bar(value=0.0)], {})) == 1


def test_a_bench_that_has_had_its_time_says_so_and_cleans_up(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(measure.LIMITS, "slow", 0.05)
    cleaned = []

    def work() -> Outcome:
        try:
            time.sleep(60)
        finally:
            cleaned.append(True)
        return Outcome([bar()], {})

    assert measure.run("slow", work) == 1
    (found,) = json.loads((results / "slow.json").read_text())["bars"]
    assert (found["name"], found["holds"], cleaned) == ("ends by itself", False, [True])


def test_a_bench_that_does_not_end_is_ended_with_what_it_started(results: Path) -> None:
    """A child in a session of its own, as a server that a bench starts."""
    told = results / "child"
    code = (
        "import subprocess, sys, time\n"
        "c = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        f"open({str(told)!r}, 'w').write(str(c.pid))\n"
        "time.sleep(600)\n"
    )
    (found,) = benches.bars_of("hung", [sys.executable, "-c", code], 6.0)
    assert found["why"] == "it did not end and was ended"
    assert (
        not Path(f"/proc/{told.read_text()}/cmdline").exists()
        or not Path(f"/proc/{told.read_text()}/cmdline").read_bytes()
    )


def test_a_bench_that_breaks_has_a_row(results: Path) -> None:
    (results / "broken.json").write_text('{"bars": []}')
    (found,) = benches.bars_of("broken", [sys.executable, "-c", "raise SystemExit(3)"], 30.0)
    assert (found["holds"], found["why"]) == (False, "it ended with 3 and no figures")


def test_all_bars_stand_in_one_table() -> None:
    found = benches.table(
        {"one": [bar().as_json()], "two": [bar(name="slow", value=0.5).as_json()]}
    ).splitlines()
    assert [line.split()[0] for line in found[2:4]] == ["one", "two"]
    assert "holds" in found[2]
    assert "MISSED" in found[3]
    assert found[-1] == "1 of 2 missed"


def test_an_unknown_bench_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert benches.main(["flood,nosuch", "other"]) == 2
    assert "no bench named nosuch, other; there are: sealed_load," in capsys.readouterr().out


def test_every_bench_has_a_limit_and_a_module() -> None:
    folder = Path(measure.__file__).parent
    for name in measure.LIMITS:
        assert (folder / f"{name}.py").exists() or (folder / name / "__main__.py").exists()
    assert os.fspath(measure.RESULTS).endswith("build/bench")
