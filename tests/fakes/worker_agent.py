"""Stands in for the node agent: seals a model, starts a worker process, reads its reports."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import grpc.aio

from appliance.core import process_tree
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.artifacts import ArtifactWriter, manifest_digest
from appliance.crypto.certs import Authority, make_csr, new_private_key
from appliance.wire.tls import channel

CLUSTER = "cluster-1"
START_SECONDS = 110


@dataclass
class Identities:
    """An authority, and certificates of whoever is asked for."""

    authority: Authority = field(default_factory=lambda: Authority.create(CLUSTER))

    def issue(self, kind: PrincipalKind, name: str) -> tuple[bytes, bytes]:
        """Key and certificate, PEM."""
        key = new_private_key()
        certificate = self.authority.issue(
            make_csr(key),
            Principal(kind, name),
            server=True,
            client=True,
            lifetime=timedelta(hours=1),
        )
        return key, certificate


@dataclass
class Store:
    """A sealed model in a folder."""

    root: Path
    key: bytes = field(default_factory=lambda: os.urandom(32))
    uid: str = "0" * 32
    project: str = "p"
    digest: str = ""

    @property
    def folder(self) -> Path:
        return self.root / self.project / self.uid

    def seal(self, model: Path) -> Store:
        writer = ArtifactWriter(
            fsspec.filesystem("file"), str(self.folder), self.key, self.project, self.uid
        )
        for file in sorted(model.iterdir()):
            with writer.create(file.name) as sealed:
                sealed.write(file.read_bytes())
        self.digest = manifest_digest(writer.finish())
        return self

    def orders(self, identities: Identities, **changes: Any) -> dict[str, Any]:
        """Orders for one replica on one core."""
        key, certificate = identities.issue(PrincipalKind.REPLICA, "replica-1")
        return {
            "work": "work-1",
            "epoch": 1,
            "endpoint": "projects/p/endpoints/e",
            "model": {
                "kind": "model",
                "folder": f"{self.project}/{self.uid}",
                "object": self.uid,
                "project": self.project,
                "key": base64.b64encode(self.key).decode(),
                "digest": self.digest,
            },
            "objects": f"file://{self.root}",
            "devices": [0],
            "tensor_parallel": 1,
            "max_sequence_length": 256,
            "cache_bytes": 64 << 20,
            "listen": "127.0.0.1:0",
            "key_pem": key.decode(),
            "cert_pem": certificate.decode(),
            "ca_pem": identities.authority.certificate_pem.decode(),
            "cluster_id": CLUSTER,
            "gateways": str(self.root / "gateways.json"),
        } | changes


class WorkerProcess:
    """A worker that was started with orders."""

    def __init__(self, orders: dict[str, Any], log: Path) -> None:
        orders_read, orders_write = os.pipe()
        self._reports, reports_write = os.pipe()
        self.log = log
        self.started = time.monotonic()
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "appliance.worker",
                    "--orders-fd",
                    str(orders_read),
                    "--reports-fd",
                    str(reports_write),
                ],
                pass_fds=(orders_read, reports_write),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )
        os.close(orders_read)
        os.close(reports_write)
        os.write(orders_write, json.dumps(orders).encode())
        os.close(orders_write)
        self._heard = b""

    def report(self, seconds: float = START_SECONDS) -> dict[str, Any]:
        """The next line; {} at the end of the pipe."""
        limit = time.monotonic() + seconds
        while b"\n" not in self._heard:
            if not select.select([self._reports], [], [], limit - time.monotonic())[0]:
                raise TimeoutError(self.log.read_text()[-3000:])
            data = os.read(self._reports, 65536)
            if not data:
                return {}
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return dict(json.loads(line))

    def family(self) -> list[int]:
        """Process numbers of the worker's session."""
        return process_tree.session(self.process.pid)

    def left(self, seconds: float = 3.0) -> list[int]:
        """Who of them is still there after some time: the kernel ends them after the first one."""
        limit = time.monotonic() + seconds
        while (found := self.family()) and time.monotonic() < limit:
            time.sleep(0.01)
        return found

    def children(self, parent: int) -> list[int]:
        """Those of the session that `parent` forked, by what runs in them: engine first."""
        return [pid for pid in process_tree.children(parent) if pid in self.family()]

    def wait(self, seconds: float) -> int:
        """Exit code."""
        return self.process.wait(seconds)

    def end(self) -> None:
        """Kill whatever is left of it."""
        process_tree.kill_tree(self.process.pid)
        self.process.wait(10)
        os.close(self._reports)


def connect(address: str, identities: Identities, kind: PrincipalKind) -> grpc.aio.Channel:
    """A channel to a worker as a principal of some kind."""
    key, certificate = identities.issue(kind, "caller-1")
    return channel(
        address,
        identities.authority.certificate_pem,
        key,
        certificate,
        server_name=PrincipalKind.REPLICA.server_name,
    )
