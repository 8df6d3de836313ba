"""Many applications and many endpoints in a control plane's state."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from appliance.control.store import tables
from tests.fakes.lab import Lab

PROJECTS = 20
AT_ONCE = 1000


def fill(lab: Lab, principals: int, endpoints: int) -> None:
    """So many applications with a token and a role each, and so many endpoints with two replicas.

    All are spread over `PROJECTS` projects, `p0` and so on; the applications are `app0`, `app1` ...
    The lab has its project.
    """
    lab.model()
    now, later = lab.time.wall(), lab.time.wall().replace(year=lab.time.wall().year + 1)
    with lab.database.write() as transaction:

        def insert(table: Any, rows: list[dict[str, Any]]) -> None:
            for start in range(0, len(rows), AT_ONCE):
                transaction.run(table.insert().values(rows[start : start + AT_ONCE]))

        numbers = range(principals)
        version = transaction.value(select(tables.artifact_version.c.uid))
        insert(
            tables.project,
            [{"id": f"p{n}", "description": "", "create_time": now} for n in range(PROJECTS)],
        )
        insert(
            tables.service_account,
            [{"id": f"app{n}", "project": project_of(n), "create_time": now} for n in numbers],
        )
        insert(
            tables.token,
            [
                {
                    "id": f"{n:016x}",
                    "service_account": f"app{n}",
                    "digest": n.to_bytes(32, "big"),
                    "create_time": now,
                    "expire_time": later,
                }
                for n in numbers
            ],
        )
        insert(
            tables.binding,
            [
                {
                    "id": f"{n:016x}",
                    "subject": f"svc:app{n}",
                    "role": "inference",
                    "domain": project_of(n),
                    "creator": "users/alice",
                    "create_time": now,
                }
                for n in numbers
            ],
        )
        insert(tables.endpoint, [_endpoint(n, version, now) for n in range(endpoints)])
        insert(tables.replica, [_replica(n, k) for n in range(endpoints) for k in range(2)])
        transaction.change_policy()
    lab.base.policies.current()


def project_of(number: int) -> str:
    """Where an application or an endpoint is."""
    return f"p{number % PROJECTS}"


def _endpoint(number: int, version: str, now: Any) -> dict[str, Any]:
    return {
        "uid": f"e{number:015}",
        "project": project_of(number),
        "id": f"e{number}",
        "model_version": version,
        "replicas": 2,
        "tensor_parallel": 1,
        "max_sequence_length": 128,
        "cache_bytes": 1 << 26,
        "state": "READY",
        "creator": "users/alice",
        "create_time": now,
    }


def _replica(number: int, index: int) -> dict[str, Any]:
    return {
        "endpoint": f"e{number:015}",
        "id": f"r{index}",
        "state": "READY",
        "epoch": 1,
        "address": f"127.0.0.1:{5000 + 2 * number + index}",
    }
