"""The tiny model, sealed and served by a real worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from appliance.api.inference.v1 import worker_service_pb2_grpc
from appliance.core.identity import PrincipalKind
from tests.fakes import tiny_llama
from tests.fakes.worker_agent import Identities, Store, WorkerProcess, connect


class Served:
    """A worker that has said that it is ready, or that it is not."""

    def __init__(
        self,
        tmp: Path,
        *,
        tokens: int = tiny_llama.VOCABULARY,
        dtype: torch.dtype = torch.float32,
        **changes: Any,
    ) -> None:
        self.folder = tmp / "model"
        self.model = tiny_llama.make(self.folder, dtype, tokens)
        self.store = Store(tmp / "store").seal(self.folder)
        self.identities = Identities()
        self.worker = WorkerProcess(self.store.orders(self.identities, **changes), tmp / "log")
        self.ready = self.worker.report()

    def stub(self, kind: PrincipalKind = PrincipalKind.GATEWAY) -> Any:
        """A stub over a new channel, which is `channel` from here on."""
        self.channel = connect(self.ready["address"], self.identities, kind)
        return worker_service_pb2_grpc.WorkerServiceStub(self.channel)
