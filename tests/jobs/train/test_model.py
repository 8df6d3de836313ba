"""Stages compute what the whole model computes; first weights do not know about layouts."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers import LlamaForCausalLM

from appliance.jobs.train import model
from appliance.jobs.train.export import WeightFile, plan
from appliance.jobs.train.model import (
    EMBEDDING,
    HEAD,
    allocate,
    first_weights,
    llama_config,
    meta_stage,
    padded_vocabulary,
    parameter_shapes,
    seed_weights,
    stored_name,
)
from appliance.jobs.train.parallel.pipeline import marked_loss
from appliance.jobs.train.parallel.slices import Coordinate
from appliance.kinds.train_settings import DecoderShape, Degrees, TrainSettings

SHAPE = DecoderShape(
    layers=4,
    hidden_size=16,
    intermediate_size=24,
    attention_heads=4,
    key_value_heads=2,
    context_length=32,
    tie_embeddings=False,
)
ALONE = Coordinate(0, 0, 1, 1)


def settings(degrees: Degrees, schedule: str = "1F1B", *, tie: bool = False) -> TrainSettings:
    shape = DecoderShape(**{**vars(SHAPE), "tie_embeddings": tie})
    return TrainSettings(shape, degrees, schedule, 1, 8, 16, 4, 0.1, 0, 0.0, 1.0, 1, 1)


def test_three_stages_in_a_row_are_the_model() -> None:
    config = llama_config(SHAPE, 61, 60)
    whole = LlamaForCausalLM(config)
    hidden = ids = torch.arange(20).reshape(2, 10)
    for layers, first, last in [
        (range(1), True, False),
        (range(1, 3), False, False),
        (range(3, 4), False, True),
    ]:
        stage = meta_stage(config, layers, first=first, last=last)
        allocate(stage, config, torch.device("cpu"))
        weights = dict(whole.named_parameters())
        with torch.no_grad():
            for name, parameter in stage.parameters_by_name().items():
                parameter.copy_(weights[name])
        hidden = stage(hidden)
    assert torch.equal(hidden, whole(input_ids=ids).logits)


def test_every_layer_and_parameter_that_is_done_is_marked() -> None:
    config = llama_config(SHAPE, 61, 60)
    marks: list[int] = []
    stage = meta_stage(config, range(4), first=True, last=True, mark=lambda: marks.append(1))
    allocate(stage, config, torch.device("cpu"))
    seed_weights(stage, config, 7, ALONE)
    assert len(marks) == len(stage.parameters_by_name())
    marks.clear()
    logits = stage(torch.arange(20).reshape(2, 10))
    assert len(marks) == 6, "four layers, the output projection, what is returned"
    marked_loss(stage)(logits, torch.zeros(2, 10, dtype=torch.int64)).backward()
    assert len(marks) == 13, "the loss too, and the same once more backward"


def test_a_large_output_projection_leaves_marks_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    # A vocabulary of 128,000 entries is worth many layers of a small model, so a batch of a minute
    # would be taken for a rank that hangs.
    config = llama_config(SHAPE, 640, 60)
    ids = torch.arange(20).reshape(2, 10)
    found = []
    for limit in (model.HEAD_PIECE, 640 * 16 * 2 * 4):
        monkeypatch.setattr(model, "HEAD_PIECE", limit)
        marks: list[int] = []
        stage = meta_stage(config, range(4), first=True, last=True, mark=partial(marks.append, 1))
        allocate(stage, config, torch.device("cpu"))
        seed_weights(stage, config, 7, ALONE)
        marks.clear()
        logits = stage(ids)
        forward = len(marks)
        marked_loss(stage)(logits, ids).backward()
        weights = stage.parameters_by_name()
        found.append((forward, len(marks), logits, {n: w.grad for n, w in weights.items()}))
    assert [each[:2] for each in found] == [(6, 13), (8, 17)]
    torch.testing.assert_close(found[1][2:], found[0][2:])


def test_an_output_projection_has_no_more_pieces_than_layers_of_its_size() -> None:
    config = llama_config(SHAPE, 640, 60)
    stage = meta_stage(config, range(4), first=True, last=True)
    # 10,240 entries in the projection, 1,920 in the matrices of a layer.
    assert stage.head_pieces(1) == 1
    assert stage.head_pieces(model.HEAD_PIECE) == 6


@pytest.mark.parametrize("tie", [False, True])
def test_a_whole_stage_has_the_parameters_of_the_model(*, tie: bool) -> None:
    config = llama_config(settings(Degrees(1, 1, 1), tie=tie).shape, 61, 60)
    stage = meta_stage(config, range(4), first=True, last=True)
    allocate(stage, config, torch.device("cpu"))
    found = {name: tuple(value.shape) for name, value in stage.parameters_by_name().items()}
    assert found == parameter_shapes(config)
    assert (HEAD in found) is not tie


def test_any_box_has_the_values_of_the_whole() -> None:
    shape = (2500, 6)
    whole = first_weights("w", shape, ((0, 2500), (0, 6)), 3, 0.02)
    for rows, columns in [((0, 1), (0, 6)), ((1000, 1100), (2, 4)), ((2047, 2500), (0, 3))]:
        part = first_weights("w", shape, (rows, columns), 3, 0.02)
        assert torch.equal(part, whole[slice(*rows), slice(*columns)])
    assert whole.std().item() == pytest.approx(0.02, rel=0.03)
    assert not torch.equal(whole[:1024], whole[1024:2048])


def test_seed_and_name_decide() -> None:
    def box(name: str, seed: int) -> torch.Tensor:
        return first_weights(name, (2, 3), ((0, 2), (0, 3)), seed, 0.02)

    assert torch.equal(box("a", 1), box("a", 1))
    assert not torch.equal(box("a", 1), box("a", 2))
    assert not torch.equal(box("a", 1), box("b", 1))
    assert torch.equal(first_weights("n", (4,), ((1, 3),), 1, 0.02), torch.ones(2))
    # Known values: a change here means that a seed no longer gives the same model.
    known = torch.tensor([[-0.9851, 1.681, -0.3663], [0.6501, 0.6824, 1.0228]])
    found = first_weights(EMBEDDING, (2, 3), ((0, 2), (0, 3)), 7, 1.0)
    torch.testing.assert_close(found, known, rtol=0, atol=1e-4)


def test_a_tied_projection_is_seeded_as_the_embedding() -> None:
    config = llama_config(settings(Degrees(1, 1, 1), tie=True).shape, 61, 60)
    first = meta_stage(config, range(2), first=True, last=False)
    last = meta_stage(config, range(2, 4), first=False, last=True)
    for stage in (first, last):
        allocate(stage, config, torch.device("cpu"))
        seed_weights(stage, config, 7, ALONE)
    one, other = first.parameters_by_name()[EMBEDDING], last.parameters_by_name()[HEAD]
    assert torch.equal(one, other)
    assert stored_name(HEAD, tied=True) == EMBEDDING
    assert stored_name(HEAD, tied=False) == HEAD


def test_the_vocabulary_is_padded_to_a_multiple_of_64() -> None:
    assert [padded_vocabulary(size) for size in (1, 64, 65, 8192)] == [64, 64, 128, 8192]


def files(settings_: TrainSettings) -> list[WeightFile]:
    shapes = parameter_shapes(llama_config(settings_.shape, 61, 60))
    made = plan(shapes, settings_)
    names = [name for file in made for name in file.shapes]
    assert sorted(names) == sorted(shapes), "every tensor in one file"
    return made


def layers(file: WeightFile) -> set[str]:
    return {".".join(name.split(".")[:3]) for name in file.shapes}


def test_one_rank_writes_one_file() -> None:
    (file,) = files(settings(Degrees(1, 1, 1)))
    assert (file.file, file.rank) == ("model.safetensors", 0)


def test_layers_are_dealt_to_the_ranks_that_hold_them() -> None:
    made = files(settings(Degrees(2, 1, 2)))
    assert [(file.file, file.rank) for file in made] == [
        ("model-00001-of-00004.safetensors", 0),
        ("model-00002-of-00004.safetensors", 1),
        ("model-00003-of-00004.safetensors", 2),
        ("model-00004-of-00004.safetensors", 3),
    ]
    assert [layers(file) for file in made] == [
        {"model.embed_tokens.weight", "model.layers.0"},
        {"model.layers.1"},
        {"model.layers.2", "model.norm.weight", "lm_head.weight"},
        {"model.layers.3"},
    ]


def test_a_v_shaped_pipeline_writes_both_ends_on_its_first_rank() -> None:
    first, second = files(settings(Degrees(1, 1, 2), "ZBVZeroBubble"))
    assert layers(first) == {
        "model.embed_tokens.weight",
        "model.layers.0",
        "model.layers.3",
        "model.norm.weight",
        "lm_head.weight",
    }
    assert layers(second) == {"model.layers.1", "model.layers.2"}


def test_ranks_without_a_layer_write_nothing() -> None:
    assert [file.rank for file in files(settings(Degrees(8, 1, 1)))] == [0, 1, 2, 3]
