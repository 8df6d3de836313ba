"""What a model version is, read from its own sealed files rather than from what its maker says.

The facts of a row: `architecture`, `parameters`, `format`, `context_length`, and the sizes that
decide where the model can run. Called by `services.data.model_intake` for what a person brings and
by `services.data.outputs` for what a job made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from appliance.control.services.data import weights
from appliance.control.services.data.weights import Tensor
from appliance.core import model_config, model_files
from appliance.core.errors import InvalidInput
from appliance.core.model_config import CONFIG, ModelConfig
from appliance.core.model_files import INDEX, is_weights
from appliance.crypto.artifacts import ArtifactReader
from appliance.crypto.tensors import read_entries


def facts(
    config: ModelConfig, files: Mapping[str, Mapping[str, Tensor]], size: int
) -> dict[str, Any]:
    """The facts of a model.

    Args:
        config: its checked configuration.
        files: tensors by weight file.
        size: bytes of all weight files.

    Raises:
        InvalidInput: the tensors are not those of the configuration.
    """
    tensors = {name: tensor for found in files.values() for name, tensor in found.items()}
    if len(tensors) != sum(len(found) for found in files.values()):
        raise InvalidInput("The same tensor is in two weight files; save the model again.")
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    sizes = config.sizes
    return {
        "architecture": config.architecture,
        "parameters": model_config.count_parameters(config, shapes),
        "format": config.format,
        "context_length": sizes.context_length,
        "layers": sizes.layers,
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "attention_heads": sizes.attention_heads,
        "key_value_heads": sizes.key_value_heads,
        "head_dim": sizes.head_dim,
        "vocabulary_size": sizes.vocabulary_size,
        "largest_tensor": max(math.prod(tensor.shape) for tensor in tensors.values()),
        "weight_bytes": size,
    }


def inspect(reader: ArtifactReader) -> dict[str, Any]:
    """The facts of a sealed model.

    Raises InvalidInput when it is not one that could be imported, Tampered when it was changed.
    """
    names = reader.files()
    for name in names:
        if not model_files.check_name(name):
            raise InvalidInput(f"{name} is no file of a model.")
    model_files.check_complete(names)
    highest = {
        name: model_files.check_file(name, reader.read_bytes(name))
        for name in names
        if not is_weights(name)
    }
    files: dict[str, dict[str, Tensor]] = {}
    size = 0
    for name in filter(is_weights, names):
        with reader.open(name) as file:
            files[name] = weights.by_name(read_entries(file))
        size += reader.entry(name).plain_size
    if INDEX in names:
        model_files.check_index(reader.read_json(INDEX), files)
    config = model_config.check_config(reader.read_json(CONFIG))
    model_files.check_ids(config, highest)
    return facts(config, files, size)
