"""The token stream and the order of batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from appliance.core.errors import InvalidInput, Tampered
from appliance.crypto.artifacts import ArtifactReader
from appliance.jobs.train.job import run
from appliance.jobs.train.tokens import Batches, TokenIndex, TokenStream
from tests.fakes.job_context import FakeJob
from tests.fakes.training import DATASET, dataset_files, tokens, training_job

WINDOWS = 2999 // 16


def dataset(folder: Path, **changes: object) -> ArtifactReader:
    files = dataset_files()
    index = files["index.json"]
    assert isinstance(index, dict)
    for name, value in changes.items():
        index[name] = value
    job = FakeJob(folder, "train", {})
    job.add_input(DATASET, "dataset", files)
    return job.context().input(DATASET)


def batches(folder: Path, seed: int = 7, batch_size: int = 8) -> Batches:
    reader = dataset(folder)
    return Batches(TokenStream(reader, TokenIndex.read(reader)), 16, batch_size, seed)


def test_a_span_may_reach_over_shards(tmp_path: Path) -> None:
    reader = dataset(tmp_path)
    with TokenStream(reader, TokenIndex.read(reader)) as stream:
        for start, count in [(0, 5), (990, 30), (1001, 4), (2990, 10), (0, 3000)]:
            assert np.array_equal(stream.read(start, count), tokens()[start : start + count])


def test_targets_are_inputs_one_token_later(tmp_path: Path) -> None:
    inputs, targets = batches(tmp_path).rows(3, 0, 8)
    assert inputs.shape == targets.shape == (8, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_rows_do_not_depend_on_who_asks_or_what_was_asked_before(tmp_path: Path) -> None:
    whole, _ = batches(tmp_path / "a").rows(40, 0, 8)
    fresh = batches(tmp_path / "b")
    fresh.rows(2, 0, 8)
    parts = [fresh.rows(40, first, 2)[0] for first in (6, 0, 4, 2)]
    assert torch.equal(whole, torch.cat([parts[1], parts[3], parts[2], parts[0]]))


def test_every_pass_sees_every_window_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    made = batches(tmp_path, batch_size=1)
    assert made.windows == WINDOWS
    data = torch.from_numpy(tokens().astype(np.int64))[: WINDOWS * 16].reshape(WINDOWS, 16)
    passes = [
        torch.cat(
            [made.rows(step, 0, 1)[0] for step in range(turn * WINDOWS, (turn + 1) * WINDOWS)]
        )
        for turn in (0, 1)
    ]
    for rows in passes:
        assert sorted(rows.tolist()) == sorted(data.tolist())
    assert not torch.equal(*passes)


def test_the_order_is_known(tmp_path: Path) -> None:
    # A change here means that checkpoints of running jobs would go on with other data.
    inputs, _ = batches(tmp_path, seed=7).rows(0, 0, 3)
    data = tokens()
    windows = [
        next(i for i in range(WINDOWS) if data[i * 16 : i * 16 + 16].tolist() == row)
        for row in inputs.tolist()
    ]
    assert windows == [59, 27, 85]


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "text"},
        {"dtype": "int8"},
        {"shards": [{"file": "train-00000.bin", "tokens": 1000, "split": "train"}]},
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        TokenIndex.read(dataset(tmp_path, **changes))
    assert caught.value.message.endswith("Prepare it again.")


def test_text_is_no_token_version(tmp_path: Path) -> None:
    job = FakeJob(tmp_path, "train", {})
    job.add_input(DATASET, "dataset", {"part-00000.jsonl": b"{}"})
    with pytest.raises(InvalidInput) as caught:
        TokenIndex.read(job.context().input(DATASET))
    assert caught.value.message.startswith("The dataset holds text, not tokens. Run a prepare job")


def test_a_token_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    reader = dataset(tmp_path, vocabulary_size=40)
    with TokenStream(reader, TokenIndex.read(reader)) as stream, pytest.raises(InvalidInput):
        stream.read(0, 100)


def test_too_little_data_is_one_sentence(tmp_path: Path) -> None:
    reader = dataset(tmp_path)
    with pytest.raises(InvalidInput) as caught:
        Batches(TokenStream(reader, TokenIndex.read(reader)), 3000, 1, 1)
    assert caught.value.message == (
        "The dataset has 3000 training tokens, fewer than one sequence of 3000 and its next token."
        " Add data or shorten sequence_length."
    )


@pytest.mark.attack
def test_a_changed_shard_is_refused_by_name(tmp_path: Path) -> None:
    job = training_job(tmp_path)
    folder = tmp_path / "objects" / job.orders["inputs"][DATASET]["folder"]
    sealed = bytearray((folder / "train-00001.bin").read_bytes())
    sealed[300] ^= 1
    (folder / "train-00001.bin").write_bytes(sealed)
    with pytest.raises(Tampered) as caught:
        run(job.context())
    assert "train-00001.bin" in caught.value.message
