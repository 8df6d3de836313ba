"""Quantized models of every family that can be: they register, and their loss stays close."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.control.services.data import model_facts
from appliance.core.families import BY_CLASS, FamilyUse
from appliance.jobs.assess import evaluate
from appliance.jobs.compress import quantize
from tests.fakes import tiny_family
from tests.fakes.job_context import FakeJob
from tests.families.conftest import Folder
from tests.families.test_import import IDS

MODEL = "projects/p/models/m/versions/1"
SMALL = "projects/p/models/small"
QUANTIZED = [name for name in tiny_family.CLASSES if FamilyUse.QUANTIZE in BY_CLASS[name].works]


def quantized(folder: Path, source: Path) -> FakeJob:
    """A quantize job of a model's folder that has ended."""
    job = FakeJob(folder, "quantize", {"model": MODEL, "output_model": SMALL})
    job.add_input(MODEL, "model", {path.name: path for path in source.iterdir()})
    job.add_output("model", f"{SMALL}/versions/1")
    quantize.run(job.context())
    return job


@pytest.mark.parametrize("architecture", QUANTIZED)
def test_a_quantized_model_is_one_of_its_family(
    tmp_path: Path, tiny: Folder, architecture: str
) -> None:
    model, folder = tiny(architecture)
    job = quantized(tmp_path, folder)
    reader = job.output("model")
    facts = model_facts.inspect(reader)
    assert (facts["architecture"], facts["format"]) == (architecture, "w8a8-int8")
    assert facts["parameters"] == sum(each.numel() for each in model.parameters())
    loss = evaluate.negative_log_likelihood(
        evaluate.load(reader, reader.read_json("config.json")), IDS
    )
    exact = evaluate.negative_log_likelihood(model, IDS)
    assert loss != exact
    assert loss == pytest.approx(exact, rel=0.05)
