"""What `/metrics` of a worker shows: how its engine is, never what was asked.

Called by `server`.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from appliance.worker.outputs import EngineActivity
from appliance.worker.service import WorkerLoad


def show(registry: CollectorRegistry, activity: EngineActivity, load: WorkerLoad) -> None:
    """Register the worker's numbers; they are read when somebody looks."""
    for name, help_text, read in (
        ("appliance_worker_steps", "Engine steps so far.", lambda: activity.steps),
        ("appliance_worker_running", "Answers in the last step.", lambda: activity.running),
        ("appliance_worker_waiting", "Answers waiting for a slot.", lambda: activity.waiting),
        ("appliance_worker_step_age_seconds", "Time since the last step.", lambda: activity.age),
        ("appliance_worker_answers", "Answers in work.", lambda: load.answers),
        ("appliance_worker_tokens", "Tokens made so far.", lambda: load.tokens),
        ("appliance_worker_draining", "1 while it takes nothing new.", lambda: load.draining),
    ):
        Gauge(name, help_text, registry=registry).set_function(read)
