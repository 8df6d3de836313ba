"""A whole prepare job over sealed text: what it keeps, what it drops and why, what it writes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from appliance.core.errors import InvalidInput, LeaseLost, Tampered
from appliance.jobs.prepare import job as prepare
from appliance.jobs.prepare.duplicates import Compared, NearDuplicates
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
        " \n " * 1000,
        f"{prose(99)} Mail bob@corp.example.",
    ]
    prepared = job(tmp_path, texts, vocabulary_size=512, validation_fraction=0.2, shard_tokens=500)
    run(prepared.context())
    dataset = prepared.output("dataset")
    report = dataset.read_json("report.json")
    dropped = {step["name"]: step["dropped"] for step in report["steps"]}
    assert dropped == {
        "normalize": {"empty": 1},
        "personal_data": {},
        "quality": {"too_short": 1},
        "exact_duplicates": {"exact_duplicate": 1},
        "near_duplicates": {"near_duplicate": 1},
    }
    assert (report["documents"], report["kept"]) == (45, 41)
    assert report["redactions"] == {"EMAIL": 1}
    assert [e["document_id"] for s in report["steps"] for e in s["examples"]] == [
        "d43",
        "d42",
        "d40",
        "d41",
    ]
    assert report["scripts"] == {
        "Latin": {"documents": 44, "kept": 41},
        "None": {"documents": 1, "kept": 0},
    }
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


@pytest.mark.attack
def test_text_that_spells_a_special_token_stays_text(tmp_path: Path) -> None:
    evil = f"{prose(50)} <|endoftext|> A new document begins. <|endoftext|>"
    texts = [*(prose(i) for i in range(40)), evil]
    prepared = job(tmp_path, texts, vocabulary_size=600, validation_fraction=0.0)
    run(prepared.context())
    dataset = prepared.output("dataset")
    ids = np.concatenate(
        [
            np.frombuffer(dataset.read_bytes(shard["file"]), "<u2")
            for shard in dataset.read_json("index.json")["shards"]
        ]
    )
    assert int((ids == 0).sum()) == len(texts)


@pytest.mark.parametrize("first", ["short", "long"])
def test_no_document_falls_for_the_sake_of_one_that_falls_itself(
    tmp_path: Path, first: str
) -> None:
    """Two that are nearly the same, of which only the longer one is long enough."""
    pair = {"short": prose(70), "long": f"{prose(70)} okay"}
    texts = [pair.pop(first), *pair.values(), *(f"{prose(100 + i)} Some more." for i in range(30))]
    least = len(prose(70)) + 1
    prepared = job(tmp_path, texts, vocabulary_size=512, minimum_characters=least)
    run(prepared.context())
    report = prepared.output("dataset").read_json("report.json")
    reasons = {e["document_id"]: e["reason"] for s in report["steps"] for e in s["examples"]}
    assert {name: why for name, why in reasons.items() if name in {"d0", "d1"}} == {
        "d0" if first == "short" else "d1": "too_short"
    }


def test_every_language_is_kept_and_counted_by_its_script(tmp_path: Path) -> None:
    lines = Path(__file__).with_name("languages.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    texts.append("\u0e01" * 50)  # too short
    prepared = job(
        tmp_path,
        texts,
        vocabulary_size=512,
        near_duplicate_threshold=1.0,
        validation_fraction=0.0,
    )
    run(prepared.context())
    report = prepared.output("dataset").read_json("report.json")
    assert report["kept"] == len(texts) - 1
    assert report["scripts"]["Thai"] == {"documents": 4, "kept": 3}
    assert report["scripts"]["Han"] == {"documents": 2, "kept": 2}
    assert sum(each["documents"] for each in report["scripts"].values()) == len(texts)


def test_a_document_that_takes_too_long_is_dropped_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = prose(7)

    def hang(text: str) -> str:
        if text == slow:
            end = time.thread_time() + 0.3
            while time.thread_time() < end:
                pass
        return text

    monkeypatch.setattr(prepare, "BUDGET_SECONDS", 0.2)
    monkeypatch.setattr(prepare, "normalize", hang)
    prepared = job(tmp_path, [prose(i) for i in range(30)], vocabulary_size=512)
    run(prepared.context())
    report = prepared.output("dataset").read_json("report.json")
    assert report["kept"] == 29
    assert [(e["document_id"], e["reason"]) for e in report["steps"][0]["examples"]] == [
        ("d7", "too_slow")
    ]


def test_what_is_dropped_for_time_costs_no_other_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that say the same; the first takes too long in the last step."""
    words = NearDuplicates.compare
    taken = []

    def slow(self: NearDuplicates, words_of_text: list[str]) -> Compared:
        found = words(self, words_of_text)
        taken.append(found)
        end = time.thread_time() + (0.3 if len(taken) == 1 else 0)
        while time.thread_time() < end:
            pass
        return found

    monkeypatch.setattr(prepare, "BUDGET_SECONDS", 0.2)
    monkeypatch.setattr(NearDuplicates, "compare", slow)
    prepared = job(tmp_path, [prose(1), prose(1), *map(prose, range(5, 30))], vocabulary_size=512)
    run(prepared.context())
    report = prepared.output("dataset").read_json("report.json")
    assert [(e["document_id"], e["reason"]) for s in report["steps"] for e in s["examples"]] == [
        ("d0", "too_slow")
    ]


@pytest.mark.attack
def test_an_excerpt_holds_nothing_that_was_cut_in_two(tmp_path: Path) -> None:
    """Texts that are dropped, whose personal data lies where an excerpt might end."""
    key = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC" * 40
    texts = [
        f"{'<>' * 90}-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\n{key}",
        "<>" * 400 + "4111 1111 1111 1111" + "<>" * 9000,
        "ghp_" + "a1" * 9000,
        " " * 790 + "-----BEGIN PRIVATE KEY-----\n" + key + "\n" + "<>" * 9000,
    ]
    prepared = job(tmp_path, [*texts, *map(prose, range(30))], vocabulary_size=512)
    run(prepared.context())
    report = json.dumps(prepared.output("dataset").read_json("report.json"))
    for secret in ("MIIE", "4111", "a1a1"):
        assert secret not in report


def test_long_documents_are_tokenized_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    sizes = []
    batches = prepare._batches

    def counted(kept: Iterator[prepare.Kept]) -> Iterator[list[prepare.Kept]]:
        for batch in batches(kept):
            sizes[-1].append(len(batch))
            yield batch

    monkeypatch.setattr(prepare, "_batches", counted)
    for characters in (1, 2200, 1 << 30):
        sizes.append([])
        monkeypatch.setattr(prepare, "_BATCH_CHARACTERS", characters)
        folder = tmp_path / str(characters)
        prepared = job(folder, [prose(i) for i in range(30)], vocabulary_size=512)
        run(prepared.context())
        dataset = prepared.output("dataset")
        files.append({file: dataset.read_bytes(file) for file in dataset.files()})
    assert files[0] == files[1] == files[2]
    assert (sizes[0], max(sizes[1]), sizes[2]) == ([1] * 30, 2, [30])


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
