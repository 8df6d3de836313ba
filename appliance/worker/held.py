"""The sealed model that this process is about to load, and the one place where its key lies.

vLLM starts its engine and its ranks by forking, and constructs the loader itself, from a class and
a plain configuration that it may write into logs and messages. So the key cannot be an argument of
the loader: it is put here before the fork, the forked processes inherit the memory, and it is
forgotten in each as soon as it has done its work. It never is in an argument, a variable of the
environment, a file, or a message between processes.

This is the worker's only module-level state. Called by `appliance.worker.main` (put, forget) and
`appliance.worker.loader` (the rest).
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.core.errors import FailedPrecondition
from appliance.crypto.store import Artifact
from appliance.worker.children import Children


@dataclass(frozen=True)
class SealedModel:
    """What a rank needs to load its weights, and whom it tells when it cannot."""

    objects: str
    source: Artifact
    family: Children


class Holder:
    """Holds one sealed model until it is forgotten."""

    def __init__(self) -> None:
        self._model: SealedModel | None = None

    def put(self, model: SealedModel) -> None:
        """Hold a model; the processes forked from now on have it too."""
        self._model = model

    def get(self) -> SealedModel:
        """The model. Raises FailedPrecondition when none is held (any more)."""
        if self._model is None:
            raise FailedPrecondition(
                "this process holds no sealed model: the worker loads one, once, when it starts"
            )
        return self._model

    def forget(self) -> None:
        """Let go of the key in this process."""
        self._model = None


HOLDER = Holder()
