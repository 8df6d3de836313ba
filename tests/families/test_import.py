"""Every class comes in through the real service, and its decrypted tensors give the same loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.api.models.v1 import model_pb2, model_service_pb2
from appliance.api.serving.v1 import endpoint_pb2, endpoint_service_pb2
from appliance.control.store import tables
from appliance.core.errors import InvalidInput
from appliance.core.families import BY_CLASS, FamilyUse
from appliance.crypto.artifacts import ArtifactReader
from appliance.jobs.assess import evaluate
from appliance.jobs.runtime.weights import Weights
from tests.fakes import tiny_family
from tests.fakes.lab import ALICE, Lab
from tests.families.conftest import Folder

IDS = torch.arange(3, 131) * 7 % tiny_family.VOCABULARY
"""Longer than the sliding windows."""


def bring(lab: Lab, folder: Path, name: str) -> model_pb2.ModelVersion:
    """Import a folder as the service takes it, in one stream."""
    message = model_service_pb2.ImportModelVersionRequest
    intake = lab.models.begin_import(ALICE, message(parent=f"projects/demo/models/{name}"))
    for path in sorted(folder.iterdir()):
        intake.add(message(file=path.name, data=path.read_bytes()))
    intake.close()
    return intake.finish()


def sealed(lab: Lab, version: model_pb2.ModelVersion) -> ArtifactReader:
    return lab.work.artifacts.open(lab.version_row(version.name))


@torch.no_grad()
def answers(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits, or hidden states of a model without an output."""
    return torch.as_tensor(model(input_ids=ids[None])[0][0])


def filled(reader: ArtifactReader) -> PreTrainedModel:
    """The class of a sealed model with its decrypted tensors, by transformers alone."""
    config = reader.read_json("config.json")
    made = AutoConfig.for_model(**config)
    model: Any = getattr(transformers, config["architectures"][0])(made)
    state = dict(Weights(reader).tensors())
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = BY_CLASS[config["architectures"][0]].tied_names
    assert (set(missing) <= tied, unexpected) == (True, [])
    model.tie_weights()
    return model.eval()


@pytest.mark.parametrize("architecture", tiny_family.CLASSES)
def test_a_model_comes_in_and_is_the_same(lab: Lab, tiny: Folder, architecture: str) -> None:
    model, folder = tiny(architecture)
    version = bring(lab, folder, architecture.lower())
    assert version.architecture == architecture
    assert version.parameters == sum(each.numel() for each in model.parameters())
    assert (version.format, version.context_length) == ("float32", 512)
    reader = sealed(lab, version)
    works = BY_CLASS[architecture].works
    if FamilyUse.EVALUATE in works:
        mine = evaluate.load(reader, reader.read_json("config.json"))
        loss = evaluate.negative_log_likelihood(mine, IDS)
        theirs = torch.nn.functional.cross_entropy(
            answers(model, IDS)[:-1], IDS[1:], reduction="sum"
        )
        assert loss == pytest.approx(float(theirs), rel=1e-6)
    else:
        assert torch.equal(answers(filled(reader), IDS), answers(model, IDS))


def test_gpt2_as_it_was_first_published_gives_the_same_loss(
    lab: Lab, tiny: Folder, tmp_path: Path
) -> None:
    model, folder = tiny("GPT2LMHeadModel")
    reader = sealed(lab, bring(lab, tiny_family.without_prefix(folder, tmp_path / "m"), "short"))
    mine = evaluate.load(reader, reader.read_json("config.json"))
    loss = evaluate.negative_log_likelihood(mine, IDS)
    assert loss == pytest.approx(evaluate.negative_log_likelihood(model, IDS), rel=1e-6)


def job(model: str, dataset: str, kind: FamilyUse) -> job_service_pb2.CreateJobRequest:
    if kind is FamilyUse.QUANTIZE:
        spec = job_pb2.QuantizeSpec(model=model, output_model="projects/demo/models/small")
        spec.scheme = job_pb2.QuantizeSpec.SCHEME_W8A8_INT8
        made = job_pb2.Job(quantize=spec)
    else:
        made = job_pb2.Job(evaluate=job_pb2.EvaluateSpec(model=model, dataset=dataset))
    return job_service_pb2.CreateJobRequest(parent="projects/demo", job=made)


@pytest.mark.parametrize("kind", [FamilyUse.QUANTIZE, FamilyUse.EVALUATE])
def test_a_job_for_a_family_without_it_is_refused_with_the_reason(
    lab: Lab, kind: FamilyUse
) -> None:
    dataset = lab.tokens(f"d-{kind.value}")
    for number, architecture in enumerate(tiny_family.CLASSES):
        name = f"{kind.value}-{number}"
        model = lab.model(name, architecture=architecture)
        request = job(model, dataset, kind)
        request.job_id = name
        if kind in BY_CLASS[architecture].works:
            lab.jobs.create(ALICE, request)
            continue
        with pytest.raises(InvalidInput, match=f"for which `{kind}` does not work: ") as raised:
            lab.jobs.create(ALICE, request)
        assert list(raised.value.fields) == [f"job.{kind}.model"]


def test_an_endpoint_for_a_family_that_is_not_served_is_refused_with_the_reason(lab: Lab) -> None:
    def create(name: str, degree: int) -> None:
        model = lab.model(name, architecture=architecture, head_dim=32)
        endpoint = endpoint_pb2.Endpoint(model=model, tensor_parallel=degree, cache_bytes=1 << 24)
        lab.endpoints.create(
            ALICE,
            endpoint_service_pb2.CreateEndpointRequest(
                parent="projects/demo", endpoint_id=name, endpoint=endpoint
            ),
        )

    for number, architecture in enumerate(tiny_family.CLASSES):
        works = BY_CLASS[architecture].works
        for degree, use in ((1, FamilyUse.TEXT), (2, FamilyUse.SPREAD)):
            if use in works:
                create(f"s{degree}-{number}", degree)
                continue
            with pytest.raises(InvalidInput, match=f"for which `{use}` does not work: "):
                create(f"s{degree}-{number}", degree)
    assert len(lab.rows(tables.endpoint)) == sum(
        (FamilyUse.TEXT in row.works) + (FamilyUse.SPREAD in row.works)
        for row in (BY_CLASS[name] for name in tiny_family.CLASSES)
    )
