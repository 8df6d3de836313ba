"""A job as a file: what is taken, and everything that is wrong with one at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.message import Message

from appliance.api.jobs.v1 import job_pb2
from appliance.cli import job_file, output
from appliance.core import values
from appliance.core.errors import InvalidInput
from appliance.kinds import KINDS, kind_of
from tests.fakes.pages import ROOT

TRAIN = """\
train:
  dataset: projects/demo/datasets/tokens/versions/1
  output_model: projects/demo/models/small
  steps: 100
  learning_rate: 1e-3
  mesh: {data: 2}
"""


def full(message: Message) -> None:
    """Set every field of a message to something that it may hold."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None:
            full(getattr(message, field.name))
            continue
        value: Any = 2.5 if field.cpp_type == field.CPPTYPE_DOUBLE else 7
        if field.cpp_type == field.CPPTYPE_BOOL:
            value = True
        elif field.enum_type is not None:
            value = 1
        elif field.cpp_type == field.CPPTYPE_STRING:
            option = values.value_of(field)
            value = option.words[0] if option is not None and option.words else "projects/p/x: 'y'"
        if field.is_repeated:
            getattr(message, field.name).extend([value, value])
        else:
            setattr(message, field.name, value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["yaml", "json"])
def test_what_get_prints_create_takes(kind: str, form: str) -> None:
    """Also with what the system says of the job."""
    spec = kind_of(kind).spec()
    full(spec)
    job = job_pb2.Job(name="projects/p/jobs/j", uid="u", epoch=3, state="STATE_FAILED", nodes=["n"])
    job.progress.metrics["loss"] = 2.0
    job.create_time.GetCurrentTime()
    getattr(job, kind).CopyFrom(spec)
    job.on_lost.replace_after_seconds = 60
    plain = output.plain(job)
    text = yaml.safe_dump(plain) if form == "yaml" else json.dumps(plain)
    assert job_file.parse(text.encode(), "job") == {kind: spec, "on_lost": job.on_lost}


def test_a_file_of_a_person() -> None:
    found = job_file.parse(TRAIN.encode("utf-8-sig"), "job.yaml")["train"]
    assert (found.steps, found.learning_rate, found.mesh.data) == (100, 0.001, 2)
    # Names as JSON has them, numbers as texts, a zero, and what is left open.
    text = "train: {outputModel: m, steps: '5', seed: 0, microbatches: null}\non_lost: {wait: true}"
    made = job_file.parse(text.encode(), "job")
    assert made["train"] == job_pb2.TrainSpec(output_model="m", steps=5, seed=0)
    assert made["on_lost"].wait


def test_everything_that_is_wrong_is_said_at_once_with_its_line() -> None:
    text = """\
train:
  stepz: 3
  steps: many
  seed: 1
  seed: 2
  mesh: 4
  architecture:
    layers: 1.5
  batch_size: [1]
prepare:
  keep_personal_data: maybe
  datasets: {a: b}
hold_on: 3
"""
    with pytest.raises(InvalidInput) as caught:
        job_file.parse(text.encode(), "job.yaml")
    assert caught.value.message.removeprefix("job.yaml is no job: ").split("; ") == [
        "line 1: it has more than one spec: prepare, train",
        "line 2: train.stepz is no field: did you mean steps?",
        "line 3: train.steps is 'many', and must be a whole number",
        "line 5: train.seed stands twice",
        "line 6: train.mesh has fields of its own: write them below it",
        "line 8: train.architecture.layers is 1.5, and must be a whole number",
        "line 9: train.batch_size is [1], and must be a whole number",
        "line 11: prepare.keep_personal_data is 'maybe', and must be true or false",
        "line 12: prepare.datasets is one value, and has fields below it",
        f"line 13: hold_on is no field: there are {', '.join(sorted([*KINDS, 'on_lost']))}",
    ]


BOMB = "a: &a [x]\nb: &b [*a, *a]\ntrain: {dataset: *b}\n"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "job is no job: write one of prepare,"),
        (b"[]", "job is no job: write one of prepare,"),
        (b"just text", "job is no job: write one of prepare,"),
        (b"name: projects/p/jobs/j", "line 1: it has no spec: write one of prepare, train"),
        (b"train: {\n  steps", "job line 2: is no YAML"),
        (b"train: {}\n\xff", "job line 2: is not UTF-8"),
        (b"train: {}\x00", "job is no YAML"),
        (BOMB.encode(), "job line 1: anchors and aliases are not taken"),
        (b"train: {<<: {steps: 1}}", "train.<< is no field"),
        (b"trian:\n  steps: 3", "line 1: trian is no field: did you mean train?"),
        (b"train:\n  mesh: {}\n  mesh:\n\n    data: 2", "line 3: train.mesh stands twice"),
        (b"train: {dataset: !!python/name:os.system }", "has a tag, which is not taken"),
        (b"train: {dataset: !x y}", "has a tag, which is not taken"),
        (b"? [a]\n: b\ntrain: {}", "has a key that is no name"),
        (b"train: {}\n---\ntrain: {}", "job line 2: holds several documents"),
        (b"train: " + b"[" * 5000, "job line 1: is nested more than 16 deep"),
        (b"train: {steps: 1" + b"0" * 5000 + b"}", "which is no number"),
        (b"train: {steps: 0x" + b"f" * 5000 + b"}", "write it in decimal digits"),
        (b"train: {steps: 1" + b":1" * 100_000 + b"}", "write it in decimal digits"),
        (b"train: {learning_rate: 1" + b":1" * 3000 + b".5}", "write it in decimal digits"),
        (b"train: {seed: 010}", "train.seed is '010', which is no number"),
        (b"train: {seed: 1:30}", "train.seed is '1:30', which is no number"),
        (b"train: {seed: 1_0}", "train.seed is '1_0', which is no number"),
        (b'train: {"\\e[31m\\u202e": 1}', r"train.\x1b[31m\u202e is no field"),
        (b" " * ((1 << 18) + 1), "job has more than 256 KiB: that is no job"),
        (b"quantize: {scheme: SCHEME_W4}", "must be one of SCHEME_W8A8_INT8"),
        (b"train: {dataset: 2026-11-28x, steps: .nan}", "train.steps is nan, and must be a whole"),
    ],
)
@pytest.mark.attack
def test_what_is_no_job_is_one_clear_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        job_file.parse(data, "job")
    assert sentence in caught.value.message
    assert len(caught.value.message) < 600


def test_many_mistakes_are_counted() -> None:
    text = "train:\n" + "".join(f"  wrong{number}: 1\n" for number in range(5000))
    with pytest.raises(InvalidInput, match="and 4980 more") as caught:
        job_file.parse(text.encode(), "job")
    assert len(caught.value.message) < 20 * 600


def test_the_page_says_the_limits() -> None:
    said = f"At most {job_file.MAX_BYTES >> 10} KiB, UTF-8, {job_file.MAX_DEPTH} levels"
    assert said in (ROOT / "docs/cli.md").read_text()


@pytest.mark.parametrize("number", ["1.0e-05", "0.5", ".5", "5.", "+2.5", "-0.0", "1E+3", "3"])
def test_a_number_in_decimal_digits(number: str) -> None:
    found = job_file.parse(f"train: {{learning_rate: {number}}}".encode(), "j")
    assert found["train"].learning_rate == float(number)


def test_a_date_is_a_text() -> None:
    assert job_file.parse(b"train: {dataset: 2026-11-28}", "j")["train"].dataset == "2026-11-28"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        job_file.read(str(tmp_path))
    with pytest.raises(InvalidInput, match="cannot be read"):
        job_file.read(str(tmp_path / "none"))
