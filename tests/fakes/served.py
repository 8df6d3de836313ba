"""The tiny model, sealed and served by a real worker."""

from __future__ import annotations

from collections.abc import Callable
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


class Standing:
    """One worker for all tests of a file, in any order: another one when a test has ended it.

    Args:
        start: makes one in a folder.
        folder: a new folder at each call.
    """

    def __init__(self, start: Callable[[Path], Served], folder: Callable[[], Path]) -> None:
        self._start = start
        self._folder = folder
        self._served: Served | None = None

    def served(self) -> Served:
        """One that runs."""
        if self._served is not None and self._served.worker.process.poll() is not None:
            self.end()
        if self._served is None:
            self._served = self._start(self._folder())
        return self._served

    def end(self) -> None:
        """End it, if there is one."""
        if self._served is not None:
            self._served.worker.end()
        self._served = None
