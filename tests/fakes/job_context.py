"""A job's context for one rank in this process, over an object store in a temporary folder.

job = FakeJob(tmp_path, "quantize", {"model": "projects/p/models/m/versions/1", ...})
job.add_input("projects/p/models/m/versions/1", "model", {"config.json": b"{}", ...})
job.add_output("model", "projects/p/models/small/versions/1")
run(job.context())
job.lines()                       # reports, parsed
job.output("model")               # ArtifactReader of what was made, checked against the reported
digest
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from pathlib import Path
from typing import Any

import torch

from appliance.crypto.artifacts import ArtifactReader, ArtifactWriter, manifest_digest
from appliance.crypto.store import ArtifactStore
from appliance.jobs.runtime.context import Context
from appliance.jobs.runtime.orders import JobOrders
from appliance.jobs.runtime.reporter import Reporter
from appliance.jobs.runtime.signs import Signs

PROJECT = "p"


class FakeJob:
    """Orders, a store and a report file for one job."""

    def __init__(
        self, folder: Path, kind: str, spec: dict[str, Any], *, epoch: int = 1, world_size: int = 1
    ) -> None:
        self.folder = folder
        self.stop = False
        self.save_on: int | None = None
        """The rank that is told to save and end."""
        self.store = ArtifactStore.at(f"file://{folder}/objects")
        self.reports = folder / "reports.jsonl"
        self.scratch = folder / "scratch"
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.orders: dict[str, Any] = {
            "job": f"projects/{PROJECT}/jobs/{kind}-1",
            "uid": "0" * 32,
            "epoch": epoch,
            "project": PROJECT,
            "kind": kind,
            "spec": spec,
            "rank_base": 0,
            "world_size": world_size,
            "local_ranks": world_size,
            "node_rank": 0,
            "node_count": 1,
            "devices": list(range(world_size)),
            "device_kind": "cpu",
            "rendezvous": "127.0.0.1:0",
            "objects": f"file://{folder}/objects",
            "inputs": {},
            "outputs": {},
            "resume": None,
            "memory_limit": 0,
        }

    def add_input(
        self,
        name: str,
        kind: str,
        files: dict[str, bytes | object],
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Seal an input artifact;

        A value that is not bytes becomes JSON. A Path value is read as a file.
        """
        place = self._place(name, kind)
        writer = ArtifactWriter(
            self.store.fs,
            self.store.path(place["folder"]),
            base64.b64decode(place["key"]),
            PROJECT,
            place["object"],
        )
        for file, content in files.items():
            data = content.read_bytes() if isinstance(content, Path) else content
            if isinstance(data, bytes):
                with writer.create(file) as sealed:
                    sealed.write(data)
            else:
                writer.write_json(file, data)
        place["digest"] = manifest_digest(writer.finish(extra))
        self.orders["inputs"][name] = place

    def add_output(self, slot: str, name: str = "") -> None:
        """Let the job make an output; slot `checkpoints` gives it a checkpoint series."""
        self.orders["outputs"][slot] = self._place(name or f"projects/{PROJECT}/{slot}", slot)

    def document(self) -> bytes:
        """The orders, as the agent sends them."""
        return json.dumps(self.orders).encode()

    def context(self, rank: int = 0) -> Context:
        """The context of one rank in this process (no process group)."""
        descriptor = os.open(self.reports, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return Context(
            orders=JobOrders.parse(self.document()),
            rank=rank,
            local_rank=rank,
            device=torch.device("cpu"),
            report=Reporter(descriptor, rank),
            scratch=self.scratch,
            stopping=lambda: self.stop,
            saving=lambda: rank == self.save_on,
            life=Signs(1).life(0),
        )

    def lines(self, kind: str | None = None) -> list[dict[str, Any]]:
        """All reports so far, or those of one type."""
        if not self.reports.exists():
            return []
        lines = [json.loads(line) for line in self.reports.read_text().splitlines()]
        return [line for line in lines if kind is None or line["type"] == kind]

    def output(self, slot: str) -> ArtifactReader:
        """What the job made, with the digest it reported last."""
        digest = [line["digest"] for line in self.lines("output") if line["slot"] == slot][-1]
        place = self.orders["outputs"][slot]
        return ArtifactReader(
            self.store.fs,
            self.store.path(place["folder"]),
            base64.b64decode(place["key"]),
            PROJECT,
            place["object"],
            digest=digest,
        )

    def _place(self, name: str, kind: str) -> dict[str, Any]:
        uid = secrets.token_hex(16)
        return {
            "name": name,
            "kind": kind,
            "folder": f"{PROJECT}/{uid}",
            "object": uid,
            "project": PROJECT,
            "key": base64.b64encode(secrets.token_bytes(32)).decode(),
        }
