import json
import os
from pathlib import Path

import pytest

from appliance.client import texts
from appliance.core.errors import InvalidInput


def test_text_files_are_found_in_folders_once_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.md", "sub/c.jsonl", "d.py"):
        (tmp_path / name).write_text("x")
    found = texts.text_files([tmp_path, tmp_path / "b.txt"])
    assert [str(path.relative_to(tmp_path)) for path, _ in found] == [
        "a.md",
        "sub/c.jsonl",
        "b.txt",
    ]


@pytest.mark.attack
def test_a_folder_gives_what_its_owner_means_and_says_what_not(tmp_path: Path) -> None:
    folder, outside = tmp_path / "texts", tmp_path / "outside"
    for name in ("texts/.git", "texts/deep", "outside"):
        (tmp_path / name).mkdir(parents=True)
    for name in (
        "texts/A.TXT",
        "texts/.secret.txt",
        "texts/.git/a.txt",
        "texts/deep/b.md",
        "texts/c.pdf",
        "texts/d.pdf",
        "texts/LICENSE",
        "outside/e.txt",
    ):
        (tmp_path / name).write_text("x")
    (folder / "link.txt").symlink_to(outside / "e.txt")
    (folder / "linked").symlink_to(outside)
    os.mkfifo(folder / "pipe.txt")
    found = texts.text_files([folder])
    assert [path.name for path, _ in found] == ["A.TXT", "b.md"]
    assert found.sentence() == (
        "hidden: 2 (--hidden takes them), links: 2 (name what they lead to), files named *.pdf: 2"
        ", files of a special kind: 1, files without an ending: 1"
    )
    taken = texts.text_files([folder], hidden=True)
    assert [path.name for path, _ in taken] == ["a.txt", ".secret.txt", "A.TXT", "b.md"]
    named = texts.text_files([folder / "link.txt", folder / ".secret.txt"])
    assert named.count == 2


def test_of_many_kinds_the_commonest_are_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / ".git").mkdir()
    for kind in range(50):
        for number in range(kind + 1):
            (tmp_path / f"{number}.kind{kind}").write_text("")
    said = texts.text_files([tmp_path]).sentence()
    assert said.startswith("hidden: 1 (--hidden takes them), files named *.kind49: 50")
    assert said.endswith("files named *.kind41: 42, others: 861")


@pytest.mark.attack
def test_a_file_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    folder, secret = tmp_path / "texts", tmp_path / "secret.txt"
    folder.mkdir()
    secret.write_text("secret")
    (folder / "a.txt").write_text("x")
    found = texts.text_files([folder])
    (folder / "a.txt").unlink()
    (folder / "a.txt").symlink_to(secret)
    with pytest.raises(InvalidInput, match="were 1 files to upload and are 0 now"):
        list(texts.documents(found, lambda _: None))
    named = texts.text_files([folder / "a.txt"])
    (document,) = texts.documents(named, lambda _: None)
    assert document.text == "secret"


def test_a_line_without_an_end_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "MAX_LINE", 100)
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "ok"}\n' + " " * 101)
    with pytest.raises(InvalidInput, match="line 2 has more than 100 bytes"):
        list(texts.documents(texts.text_files([file]), lambda _: None))


def test_what_was_left_out_is_said_when_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(InvalidInput, match=r"left out: files named \*.pdf: 1"):
        texts.text_files([tmp_path])


@pytest.mark.parametrize("name", ["missing.txt", "code.py"])
def test_what_is_no_text_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "code.py").write_text("x")
    with pytest.raises(InvalidInput, match=name):
        texts.text_files([tmp_path / name])


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no files"):
        texts.text_files([tmp_path])


def test_documents_of_files_and_lines(tmp_path: Path) -> None:
    text, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_text("hello")
    rows = [{"text": "one", "id": "x", "source": "s"}, {"text": "two"}]
    lines.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    read: list[int] = []
    found = list(texts.documents(texts.text_files([text, lines]), read.append))
    assert [(each.id, each.text, each.source) for each in found] == [
        ("a.txt", "hello", "a.txt"),
        ("x", "one", "s"),
        ("b.jsonl:2", "two", "b.jsonl"),
    ]
    assert read == [5, lines.stat().st_size]


@pytest.mark.parametrize("form", ["txt", "jsonl"])
def test_a_long_text_becomes_documents_that_fit(tmp_path: Path, form: str) -> None:
    text = "".join(f"Paragraph {n} says \u00e4.\n\n" for n in range(200_000))
    file = tmp_path / f"long.{form}"
    file.write_text(text if form == "txt" else json.dumps({"id": "long.txt", "text": text}))
    found = list(texts.documents(texts.text_files([file]), lambda _: None))
    assert "".join(each.text for each in found) == text
    assert [each.id for each in found] == [f"long.txt#{n + 1}" for n in range(len(found))]
    assert all(each.text.endswith("\n\n") for each in found)
    assert max(each.ByteSize() for each in found) < 2 << 20


def test_a_long_text_without_a_place_to_cut_is_cut_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("\U0001f469" * (1 << 20))
    found = list(texts.documents(texts.text_files([file]), lambda _: None))
    assert [len(each.text) for each in found] == [1 << 18] * 4


def test_a_mark_of_the_byte_order_is_no_text(tmp_path: Path) -> None:
    for name, text in (("a.jsonl", '{"text": "one"}'), ("b.txt", "two")):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
    files = texts.text_files([tmp_path])
    assert [each.text for each in texts.documents(files, lambda _: None)] == ["one", "two"]


def test_a_file_whose_name_is_not_utf_8_is_taken(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("one")
    files = texts.text_files([tmp_path])
    (found,) = texts.documents(files, lambda _: None)
    assert (found.id, found.source) == ("caf\\xe9.txt",) * 2


def test_an_id_that_is_null_is_none(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "x", "id": null, "source": null}\n{"text": "y", "id": 7}')
    found = [
        (each.id, each.source) for each in texts.documents(texts.text_files([file]), lambda _: None)
    ]
    assert found == [("a.jsonl:1", "a.jsonl"), ("7", "a.jsonl")]


def test_ids_do_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    found = []
    for place in ("here", "there"):
        folder = tmp_path / place / "texts"
        (folder / "deep").mkdir(parents=True)
        (folder / "a.txt").write_text("one")
        (folder / "deep" / "a.txt").write_text("two")
        files = texts.text_files([folder])
        found.append([each.id for each in texts.documents(files, lambda _: None)])
    assert found == [["a.txt", "deep/a.txt"]] * 2


@pytest.mark.parametrize("line", ["{", "[]", "{}", '"text"', "3", '{"text": 5}'])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "b.jsonl"
    file.write_text('{"text": "ok"}\n' + line)
    with pytest.raises(InvalidInput, match="line 2"):
        list(texts.documents(texts.text_files([file]), lambda _: None))


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
        ('{"text": "x", "id": ' + "7" * 5000 + "}", "line 2 has a number of 5000 digits"),
        ('{"text": "x", "id": {"a": 1}}', "line 2 has a `id` that is no text"),
    ],
)
def test_a_line_that_no_other_reader_would_read_alike_is_refused(
    tmp_path: Path, line: str, why: str
) -> None:
    file = tmp_path / "b.jsonl"
    file.write_text('{"text": "ok"}\n' + line)
    with pytest.raises(InvalidInput, match=why):
        list(texts.documents(texts.text_files([file]), lambda _: None))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="UTF-8"):
        list(texts.documents(texts.text_files([file]), lambda _: None))


def test_bytes_that_are_text_by_accident_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("hello".encode("utf-16-le"))
    with pytest.raises(InvalidInput, match="NUL bytes"):
        list(texts.documents(texts.text_files([file]), lambda _: None))


def test_what_was_named_twice_is_taken_once(tmp_path: Path) -> None:
    (tmp_path / "sub" / ".deep").mkdir(parents=True)
    for name in ("a.txt", "sub/b.txt", "sub/.deep/c.txt"):
        (tmp_path / name).write_text("x")
    roots = [tmp_path / "sub", tmp_path, tmp_path / "a.txt", tmp_path, tmp_path / "sub" / ".deep"]
    found = texts.text_files(roots)
    names = [str(path.relative_to(tmp_path)) for path, _ in found]
    assert sorted(names) == ["a.txt", "sub/.deep/c.txt", "sub/b.txt"]
    assert (found.count, found.size, found.shared) == (3, 3, tmp_path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"id": "a\\tb", "text": "x"}', r"has the id 'a\tb', which is not 1 to 256 printable"),
        ('{"id": "", "text": "x"}', "has the id ''"),
        (f'{{"id": "{"a" * 257}", "text": "x"}}', "has the id 'aaa"),
        (f'{{"source": "{"a" * 1025}", "text": "x"}}', "has a `source` of more than 1,024"),
    ],
)
def test_a_document_that_would_be_refused_is_named_by_its_line(
    tmp_path: Path, line: str, problem: str
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"text": "fine"}}\n\n{line}\n')
    with pytest.raises(InvalidInput) as refused:
        list(texts.documents(texts.text_files([tmp_path]), lambda _: None))
    assert refused.value.message.startswith(f"{file} line 3 {problem}")


def test_a_file_whose_path_cannot_be_an_id_is_named(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["folder" * 20] * 3)
    deep.mkdir(parents=True)
    (tmp_path / "a.txt").write_text("x")
    file = deep / "b.txt"
    file.write_text("x")
    with pytest.raises(InvalidInput) as refused:
        list(texts.documents(texts.text_files([tmp_path]), lambda _: None))
    assert refused.value.message.startswith(f"{file} has the id")
