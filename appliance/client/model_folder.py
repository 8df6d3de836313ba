"""What is in a model's folder, judged before a byte of it is sent.

Rule kept here: everything that the control plane would refuse by names, sizes, configuration,
tokens or headers of weights is said here first and all at once, by the same functions. The control
plane judges again; it trusts nobody's word for it. Only whether every number is one is left to it,
which has to read all of the weights.

Reads small files whole and of each weight file its header. Called by `appliance model import`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.core import model_config, model_files
from appliance.core.errors import InvalidInput
from appliance.core.family_tensors import Shape
from appliance.core.model_config import CONFIG, ModelConfig
from appliance.core.model_files import INDEX, Sorted, is_weights
from appliance.core.numbers import written
from appliance.core.strict_json import read_object
from appliance.crypto import tensors


@dataclass(frozen=True)
class ModelFolder:
    """A folder that can be imported.

    Attributes:
        files: name and bytes of what is sent, in its order.
        left_out: name -> why it is not sent.
        config: what its configuration says.
        parameters: in its weights.
    """

    files: list[tuple[str, int]]
    left_out: dict[str, str]
    config: ModelConfig
    parameters: int

    @property
    def size(self) -> int:
        """Bytes that are sent."""
        return sum(size for _, size in self.files)


def examine(folder: Path) -> ModelFolder:
    """Look at everything in a folder.

    Raises InvalidInput naming all that cannot be used, each with what to do.
    """
    if not (folder / CONFIG).is_file():
        raise InvalidInput(
            f"{folder} is no model: give a folder in the Hugging Face layout, with config.json."
        )
    listed = sorted(folder.iterdir(), key=lambda path: path.name)
    folders = {f"{path.name}/": "a folder" for path in listed if path.is_dir()}
    files = [path.name for path in listed if path.is_file()]
    hidden = {name: "hidden" for name in files if name.startswith(".")}
    judged = model_files.sort_files(name for name in files if name not in hidden)
    look = _Look(judged)
    # What is judged when it comes is sent before hours of what is judged at the end.
    kept = sorted(judged.kept, key=lambda name: (is_weights(name), name))
    sent = [(name, look.at(folder / name)) for name in kept]
    config, parameters = look.whole()
    if judged.problems or config is None:
        raise _refused(folder, judged.problems)
    left_out = hidden | folders | judged.left_out
    readable = {os.fsencode(name).decode(errors="replace"): why for name, why in left_out.items()}
    return ModelFolder(sent, readable, config, parameters)


class _Look:
    """Looks at file after file; notes in the problems what is wrong."""

    def __init__(self, judged: Sorted) -> None:
        self._problems = judged.problems
        self._highest: dict[str, int] = {}
        self._values: dict[str, dict[str, Any]] = {}
        self._tensors: dict[str, dict[str, Shape]] = {}

    def at(self, path: Path) -> int:
        """Look at one file; its bytes."""
        name = path.name
        size = 0
        try:
            size = path.stat().st_size
            if is_weights(name):
                self._tensors[name] = _header(path, size)
            else:
                self._small(path, size)
        except InvalidInput as error:
            self._problems.update(error.fields)
        except OSError as error:
            self._problems[name] = f"cannot be read ({error.strerror}): make it readable"
        return size

    def _small(self, path: Path, size: int) -> None:
        name, largest = path.name, model_files.largest(path.name)
        if size > largest:
            self._problems[name] = f"has {written(size)} bytes; 0 to {written(largest)} are taken"
            return
        data = path.read_bytes()
        if name in {CONFIG, INDEX}:
            self._values[name] = read_object(name, data)
        self._highest[name] = model_files.check_file(name, data)

    def whole(self) -> tuple[ModelConfig | None, int]:
        """Look at what needs more than one file: the configuration, and the parameters in all."""
        config, parameters = None, 0
        try:
            if CONFIG in self._values:
                config = model_config.check_config(self._values[CONFIG])
        except InvalidInput as error:
            self._problems.update(error.fields)
        # A weight file that cannot be read has no tensors that could be missed.
        readable = bool(self._tensors) and not any(map(is_weights, self._problems))
        try:
            if config is not None:
                model_files.check_ids(config, self._highest)
        except InvalidInput as error:
            self._problems.update(error.fields)
        try:
            if readable and INDEX in self._values:
                model_files.check_index(self._values[INDEX], self._tensors)
            if readable and config is not None:
                found = [each for tensors in self._tensors.values() for each in tensors.items()]
                parameters = model_config.count_parameters(config, dict(found))
        except InvalidInput as error:
            self._problems.update(error.fields)
        return config, parameters


def _header(path: Path, size: int) -> dict[str, Shape]:
    """The tensors of a weight file, by its header. Raises InvalidInput."""
    with path.open("rb") as file:
        prefix = file.read(tensors.LENGTH_SIZE)
        layout = None
        if len(prefix) == tensors.LENGTH_SIZE:
            length = tensors.header_length(path.name, prefix)
            if tensors.LENGTH_SIZE + length <= size:
                layout = tensors.parse_header(path.name, file.read(length))
    layout = tensors.check_size(path.name, layout, size)
    return {entry.name: entry.shape for entry in layout.entries}


def _refused(folder: Path, problems: dict[str, str]) -> InvalidInput:
    if len(problems) == 1:
        ((name, why),) = problems.items()
        return InvalidInput(f"{name} {why}.", fields=problems)
    return InvalidInput(
        f"{len(problems)} things in {folder} cannot be used, and nothing was sent.", fields=problems
    )
