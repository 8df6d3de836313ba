"""A model that went in and came out again is the same model to transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from appliance.api.data.v1 import download_pb2, download_service_pb2
from appliance.api.models.v1 import model_service_pb2
from appliance.client.downloads import Download
from tests.fakes import tiny_llama
from tests.fakes.lab import ALICE, Lab

MODEL = "projects/demo/models/tiny"


def loss(model: PreTrainedModel) -> float:
    ids = torch.randint(tiny_llama.VOCABULARY, (2, 32), generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        return float(model(input_ids=ids, labels=ids).loss)


def bring(lab: Lab, folder: Path) -> str:
    message = model_service_pb2.ImportModelVersionRequest
    intake = lab.models.begin_import(ALICE, message(parent=MODEL))
    for path in sorted(folder.iterdir(), key=lambda path: path.suffix == ".safetensors"):
        intake.add(message(file=path.name, data=path.read_bytes()))
    intake.close()
    return intake.finish().name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_is_that_of_before_the_import(
    lab: Lab, tmp_path: Path, dtype: torch.dtype
) -> None:
    source, target = tmp_path / "source", tmp_path / "downloaded"
    tiny_llama.make(source, dtype, tokens=500)
    before = loss(AutoModelForCausalLM.from_pretrained(source, dtype=dtype, local_files_only=True))
    name = bring(lab, source)
    lab.allow_downloads()

    def begin(file: str, offset: int) -> Iterator[download_pb2.DownloadPart]:
        request = download_service_pb2.DownloadModelVersionRequest(
            name=name, file=file, offset=offset
        )
        return lab.downloads.model(dataclasses.replace(ALICE, notes={}), request)

    with Download(name, target, force=False, say=print) as work:
        work.run(begin)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        path.name: path.read_bytes() for path in source.iterdir()
    }
    after = AutoModelForCausalLM.from_pretrained(target, dtype=dtype, local_files_only=True)
    assert loss(after) == before
