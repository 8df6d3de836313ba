"""What the demo found: a line per step, a table at the end, build/demo.json for programs."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Step = Callable[[Any], str]


class Report:
    """Collects steps and figures; `values` has the sections of demo.json."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = time.monotonic()
        self.steps: list[dict[str, Any]] = []
        self.values: dict[str, Any] = {
            "prepare": {},
            "train": [],
            "quantize": {},
            "serve": {},
            "attacks": {},
        }

    def say(self, text: str) -> None:
        """Tell the person in front of the terminal."""
        print(f"\n== {text}", flush=True)

    def run(self, step: Step, stage: object) -> bool:
        """Run one step; its docstring names it, its result says what happened; False: it failed."""
        name = (step.__doc__ or step.__name__).split(".")[0].strip()
        self.say(name)
        began = time.monotonic()
        try:
            outcome, ok = step(stage), True
        except Exception as error:  # noqa: BLE001 - a demo reports every failure and tears down
            traceback.print_exc()
            outcome, ok = f"{type(error).__name__}: {error}".splitlines()[0], False
        seconds = round(time.monotonic() - began, 1)
        print(f"   {'ok' if ok else 'FAILED'} in {seconds} s: {outcome}", flush=True)
        self.steps.append({"name": name, "ok": ok, "seconds": seconds, "outcome": outcome})
        return ok

    def write(self) -> None:
        """Write demo.json."""
        document = {
            "seconds": round(time.monotonic() - self.start, 1),
            "steps": [{key: step[key] for key in ("name", "ok", "seconds")} for step in self.steps],
            **self.values,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(document, indent=2) + "\n")

    def print_table(self) -> None:
        """Print what happened."""
        width = max(len(step["name"]) for step in self.steps)
        print(f"\n{'step':{width}}  {'':6}  seconds  what happened")
        for step in self.steps:
            mark = "ok" if step["ok"] else "FAILED"
            print(f"{step['name']:{width}}  {mark:6}  {step['seconds']:7.1f}  {step['outcome']}")
        total = round(time.monotonic() - self.start, 1)
        print(f"\n{total} s in all; figures in {self.path.name} under build/")
