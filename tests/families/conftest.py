"""One model of each class, made once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from tests.fakes import tiny_family
from tests.fakes.appliance import make_data_directory
from tests.fakes.lab import Lab, new_lab

Folder = Callable[[str], tuple[PreTrainedModel, Path]]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A class's model and the folder that it is saved in; nobody changes either."""
    made: dict[str, tuple[PreTrainedModel, Path]] = {}

    def find(architecture: str) -> tuple[PreTrainedModel, Path]:
        if architecture not in made:
            model = tiny_family.build(architecture)
            made[architecture] = (
                model,
                tiny_family.save(model, tmp_path_factory.mktemp(architecture) / "model"),
            )
        return made[architecture]

    return find


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A control plane with a project and a node, without sockets."""
    folder = tmp_path_factory.mktemp("lab")
    template = make_data_directory(folder / "template")
    with new_lab(template, folder / "data") as started:
        asyncio.run(started.connected("n1"))
        yield started
