import json
from pathlib import Path

import pytest

from appliance.client import uploads
from appliance.core.errors import InvalidInput


def test_text_files_are_found_in_folders_once_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.md", "sub/c.jsonl", "d.py"):
        (tmp_path / name).write_text("x")
    found = uploads.text_files([tmp_path, tmp_path / "b.txt"])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a.md", "b.txt", "sub/c.jsonl"]


@pytest.mark.parametrize("name", ["missing.txt", "code.py"])
def test_what_is_no_text_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "code.py").write_text("x")
    with pytest.raises(InvalidInput, match=name):
        uploads.text_files([tmp_path / name])


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no files"):
        uploads.text_files([tmp_path])


def test_documents_of_files_and_lines(tmp_path: Path) -> None:
    text, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_text("hello")
    rows = [{"text": "one", "id": "x", "source": "s"}, {"text": "two"}]
    lines.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    read: list[int] = []
    found = list(uploads.documents([text, lines], read.append))
    assert [(each.id, each.text, each.source) for each in found] == [
        ("a.txt", "hello", "a.txt"),
        ("x", "one", "s"),
        ("b.jsonl:2", "two", "b.jsonl"),
    ]
    assert read == [5, lines.stat().st_size]


def test_ids_do_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    found = []
    for place in ("here", "there"):
        folder = tmp_path / place / "texts"
        (folder / "deep").mkdir(parents=True)
        (folder / "a.txt").write_text("one")
        (folder / "deep" / "a.txt").write_text("two")
        files = uploads.text_files([folder])
        found.append([each.id for each in uploads.documents(files, lambda _: None)])
    assert found == [["a.txt", "deep/a.txt"]] * 2


@pytest.mark.parametrize("line", ["{", "[]", "{}", '"text"', "3", '{"text": 5}'])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "b.jsonl"
    file.write_text('{"text": "ok"}\n' + line)
    with pytest.raises(InvalidInput, match="line 2"):
        list(uploads.documents([file], lambda _: None))


@pytest.mark.attack
@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"text": "half \\ud800"}', "line 2 has half of a surrogate pair at text"),
        ('{"text": "x", "\\udfff": 1}', "line 2 has half of a surrogate pair at a key"),
        ('{"text": "x", "id": ["\\ud800"]}', r"line 2 has half of a surrogate pair at id\[0\]"),
        ('{"text": ' + "[" * 100_000, "line 2 is nested more than 64 deep"),
        ('{"text": "x", "more": ' + "[" * 500 + "]" * 500 + "}", "line 2 is nested more than 64"),
        ('{"text": "x", "text": "y"}', "line 2 has the same key twice"),
    ],
)
def test_a_line_that_no_other_reader_would_read_alike_is_refused(
    tmp_path: Path, line: str, why: str
) -> None:
    file = tmp_path / "b.jsonl"
    file.write_text('{"text": "ok"}\n' + line)
    with pytest.raises(InvalidInput, match=why):
        list(uploads.documents([file], lambda _: None))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="UTF-8"):
        list(uploads.documents([file], lambda _: None))


def test_bytes_that_are_text_by_accident_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("hello".encode("utf-16-le"))
    with pytest.raises(InvalidInput, match="NUL bytes"):
        list(uploads.documents([file], lambda _: None))


def test_messages_stay_small_and_lose_nothing(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text("x" * 600_000)
    documents = uploads.documents(uploads.text_files([tmp_path]), lambda _: None)
    first, *rest = uploads.dataset_messages("parent", "id", documents)
    assert (first.parent, first.request_id, len(first.documents)) == ("parent", "id", 0)
    assert [len(message.documents) for message in rest] == [1, 1, 1, 1, 1]
    assert all(message.ByteSize() < 2 << 20 for message in rest)


def test_a_model_is_cut_and_put_together(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = bytes(range(256)) * 6000
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "empty.txt").touch()
    (tmp_path / ".hidden").write_text("x")
    moved: list[int] = []
    files = uploads.model_files(tmp_path)
    first, *rest = uploads.model_messages("parent", "id", files, moved.append)
    assert (first.parent, first.file) == ("parent", "")
    whole: dict[str, bytes] = {}
    for message in rest:
        whole[message.file] = whole.get(message.file, b"") + message.data
    assert whole == {"config.json": b"{}", "empty.txt": b"", "model.safetensors": weights}
    assert max(len(message.data) for message in rest) == uploads.MESSAGE_BYTES
    assert sum(moved) == 2 + len(weights)


def test_a_folder_without_configuration_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"config\.json"):
        uploads.model_files(tmp_path)
