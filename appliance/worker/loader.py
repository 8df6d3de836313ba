"""vLLM's model loader for sealed models: weights go from ciphertext into memory, never onto disk.

vLLM finds `register` through the entry point `appliance_sealed_loader` (or the worker calls it) and
constructs the loader in each rank, which opens the files itself: nothing decrypted crosses
processes. Rules kept here: what a rank cannot load it says to the worker, object and all, before it
fails; a parameter that no file gives a value stops the start, rather than serving random weights.

Called by vLLM, in forked processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from vllm.config import ModelConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import (
    _LOAD_FORMAT_TO_MODEL_LOADER,
    register_model_loader,
)
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from appliance.core.errors import ApplianceError, InvalidInput
from appliance.crypto.store import ArtifactStore
from appliance.worker.admission import weight_files
from appliance.worker.held import HOLDER, SealedModel
from appliance.worker.tensors import read_tensors

LOAD_FORMAT = "sealed"


class SealedLoader(BaseModelLoader):  # type: ignore[misc]  # vLLM has no types that mypy follows
    """Loads the weights of the one model that this process holds."""

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(load_config)

    def download_model(self, model_config: ModelConfig) -> None:
        """Nothing to fetch: the object store is read while loading."""

    def load_weights(self, model: torch.nn.Module, model_config: ModelConfig) -> None:
        """Fill the model's parameters, each rank its share.

        Raises:
            Tampered: a file is not what was sealed.
            InvalidInput: the files do not fit the model.
        """
        held = HOLDER.get()
        try:
            # Every model of vLLM has this method; torch's base class does not name it.
            loaded: set[str] | None = cast("Any", model).load_weights(_weights(held))
            if model_config.quantization is None and loaded is not None:
                _check_complete(model, loaded)
        except ApplianceError as error:
            held.family.tell(error)
            raise
        finally:
            HOLDER.forget()


def _weights(held: SealedModel) -> Iterator[tuple[str, torch.Tensor]]:
    artifact = ArtifactStore.at(held.objects).reader(held.source)
    for file in weight_files(artifact.files()):
        with artifact.open(file) as reader:
            yield from read_tensors(reader)


def _check_complete(model: torch.nn.Module, loaded: set[str]) -> None:
    missing = sorted({name for name, _ in model.named_parameters()} - loaded)
    if missing:
        raise InvalidInput(
            f"the model's weights have no value for {missing[0]} ({len(missing)} such): "
            "import the model again"
        )


def register() -> None:
    """Make the load format `sealed` known to vLLM; a second call does nothing."""
    if LOAD_FORMAT not in _LOAD_FORMAT_TO_MODEL_LOADER:
        register_model_loader(LOAD_FORMAT)(SealedLoader)
