"""What operators are told may go away is what the journeys take away."""

from __future__ import annotations

import re
from collections import defaultdict

from tests.fakes.pages import ROOT
from tests.journeys.faults import FAULTS
from tests.journeys.table import ROWS, SILENT


def test_the_page_has_the_table_that_is_tried() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    text = page.partition("\n## What may go away\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)[2:]
    tried = defaultdict(list)
    for row in ROWS:
        tried[row.fault].append(row.phase)
    assert {fault: phases.split(", ") for fault, phases, _, _ in rows} == tried
    assert set(tried) == set(FAULTS)
    assert {int(row.seconds) for row in ROWS if row.seconds > 30} == {int(SILENT)}
    for fault, _, seconds, seen in rows:
        mine = [row for row in ROWS if row.fault == fault]
        assert f"{mine[0].seconds:.0f} s" == seconds or not mine[0].seconds, fault
        starts = max(row.epoch for row in mine)
        assert (starts > 1) == ("starts again" in seen), fault
        assert any(not row.answers for row in mine) == ("ask again" in seen), fault
