"""A whole prepare job over sealed text: what it keeps, what it drops and why, what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from appliance.core.errors import InvalidInput, LeaseLost, Tampered
from appliance.jobs.prepare.job import run
from tests.fakes.job_context import FakeJob

NAME = "projects/p/datasets/d/versions/1"
THEMES = ("module", "class", "function", "method", "object", "value", "name", "scope", "loop")


def prose(number: int) -> str:
    """A text of its own for each number, of ordinary sentences."""
    return " ".join(
        f"Each {THEMES[(number + i) % 9]} number {number * 31 + i} belongs to the {THEMES[i % 9]} "
        f"that chapter {number + i * 7} describes, and nothing else may change it."
        for i in range(8)
    )


def job(tmp_path: Path, texts: list[str], **spec: Any) -> FakeJob:
    lines = [
        json.dumps({"id": f"d{i}", "text": text, "source": "t"}) for i, text in enumerate(texts)
    ]
    half = len(lines) // 2
    made = FakeJob(
        tmp_path,
        "prepare",
        {"datasets": [NAME], "output_tokenizer": "projects/p/tokenizers/t", **spec},
    )
    parts = {
        "part-00000.jsonl": "".join(f"{line}\n" for line in lines[:half]).encode(),
        "part-00001.jsonl": "".join(f"{line}\n" for line in lines[half:]).encode(),
    }
    made.add_input(NAME, "dataset", parts)
    made.add_output("dataset")
    made.add_output("tokenizer")
    return made


def test_what_is_kept_dropped_and_written(tmp_path: Path) -> None:
    texts = [prose(i) for i in range(40)]
    texts += [
        texts[3].upper(),
        texts[5] + " One sentence more.",
        "too short",
        " \n ",
        f"{prose(99)} Mail bob@corp.example.",
    ]
    prepared = job(tmp_path, texts, vocabulary_size=512, validation_fraction=0.2, shard_tokens=500)
    run(prepared.context())
    dataset = prepared.output("dataset")
    report = dataset.read_json("report.json")
    dropped = {step["name"]: step["dropped"] for step in report["steps"]}
    assert dropped == {
        "normalize": {"empty": 1},
        "exact_duplicates": {"exact_duplicate": 1},
        "near_duplicates": {"near_duplicate": 1},
        "personal_data": {},
        "quality": {"too_short": 1},
    }
    assert (report["documents"], report["kept"]) == (45, 41)
    assert report["redactions"] == {"EMAIL": 1}
    assert [e["document_id"] for s in report["steps"] for e in s["examples"]] == [
        "d43",
        "d40",
        "d41",
        "d42",
    ]
    result = prepared.lines("result")[-1]["value"]
    assert result["values"]["kept"] == 41
    assert result["dropped"]["near_duplicate"] == 1


def test_tokens_read_back_as_the_clean_text(tmp_path: Path) -> None:
    texts = [prose(i) for i in range(40)]
    prepared = job(tmp_path, texts, vocabulary_size=600, validation_fraction=0.25, shard_tokens=700)
    run(prepared.context())
    dataset = prepared.output("dataset")
    index = dataset.read_json("index.json")
    tokenizer = Tokenizer.from_str(
        prepared.output("tokenizer").read_bytes("tokenizer.json").decode()
    )
    found: dict[str, list[str]] = {}
    for split in ("train", "validation"):
        shards = [shard for shard in index["shards"] if shard["split"] == split]
        assert all(shard["tokens"] == 700 for shard in shards[:-1])
        ids = np.concatenate(
            [np.frombuffer(dataset.read_bytes(shard["file"]), "<u2") for shard in shards]
        ).tolist()
        assert len(ids) == index["tokens"][split]
        text = tokenizer.decode(ids, skip_special_tokens=False)
        found[split] = text.split("<|endoftext|>")[:-1]
    assert sorted(found["train"] + found["validation"]) == sorted(texts)
    lines = dataset.read_bytes("validation.jsonl").decode().splitlines()
    assert [json.loads(line)["text"] for line in lines] == found["validation"]
    assert 3 <= len(lines) <= 17


def test_no_share_held_out_is_none(tmp_path: Path) -> None:
    texts = [prose(i) for i in range(40)]
    prepared = job(tmp_path, texts, vocabulary_size=600, validation_fraction=0.0)
    run(prepared.context())
    dataset = prepared.output("dataset")
    assert dataset.read_bytes("validation.jsonl") == b""
    assert dataset.read_json("index.json")["tokens"]["validation"] == 0


def test_the_same_job_writes_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for place in ("a", "b"):
        prepared = job(tmp_path / place, [prose(i) for i in range(30)], vocabulary_size=512)
        run(prepared.context())
        dataset = prepared.output("dataset")
        files.append({file: dataset.read_bytes(file) for file in dataset.files()})
    assert files[0] == files[1]


def test_nothing_left_says_what_to_loosen(tmp_path: Path) -> None:
    prepared = job(tmp_path, ["short", "also short"], vocabulary_size=512)
    with pytest.raises(InvalidInput, match=r"no document is left.*minimum-characters.*too_short"):
        run(prepared.context())


def test_too_little_text_for_the_vocabulary(tmp_path: Path) -> None:
    prepared = job(tmp_path, [prose(1), prose(2)], vocabulary_size=8192)
    with pytest.raises(InvalidInput, match="8192 were asked for: ask for fewer"):
        run(prepared.context())


@pytest.mark.attack
def test_a_changed_byte_of_the_input_is_refused_by_name(tmp_path: Path) -> None:
    prepared = job(tmp_path, [prose(i) for i in range(20)], vocabulary_size=512)
    part = next((tmp_path / "objects").rglob("part-00001.jsonl"))
    data = bytearray(part.read_bytes())
    data[-100] ^= 1
    part.write_bytes(data)
    with pytest.raises(Tampered, match=r"part-00001\.jsonl"):
        run(prepared.context())
    assert prepared.lines("output") == []


def test_a_lost_lease_stops_the_job(tmp_path: Path) -> None:
    prepared = job(tmp_path, [prose(i) for i in range(20)], vocabulary_size=512)
    prepared.stop = True
    with pytest.raises(LeaseLost):
        run(prepared.context())
