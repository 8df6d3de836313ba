"""Find text, and cut documents and model files into the messages of an upload.

A message stays well below the 4 MiB that servers take. Files are read as they are sent; nothing is
held in memory as a whole but a text of at most `LARGEST_DOCUMENT`.
"""

from __future__ import annotations

import io
import itertools
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from appliance.api.data.v1 import dataset_service_pb2 as data
from appliance.api.models.v1 import model_service_pb2 as models
from appliance.core import strict_json
from appliance.core.errors import InvalidInput

MESSAGE_BYTES = 1 << 20
LARGEST_DOCUMENT = 3 << 20
"""Bytes of one document that the control plane takes; a longer text becomes several."""
PART_CHARACTERS = 1 << 18
"""Of each of them: at most 1 MiB, whatever the characters are."""
TEXT_SUFFIXES = (".txt", ".md", ".rst")
LINES_SUFFIX = ".jsonl"
_WANTED = (*TEXT_SUFFIXES, LINES_SUFFIX)
_NAMES = ", ".join(_WANTED)
LINKS, HIDDEN = "links", "hidden"
_HINTS = {LINKS: " (name what they lead to)", HIDDEN: " (--hidden takes them)"}
_MOST_SAID = 10
"""Kinds of what was left out that are named."""
LONGEST_LINE = 1 << 26
"""Characters of a line of a .jsonl file."""
Advance = Callable[[int], None]


@dataclass
class Found:
    """Files to upload, and what was seen beside them.

    Attributes:
        files: sorted, each once.
        named: those among them that were named themselves; they alone may be links.
        left_out: how many files and folders were not taken, by what they are.
    """

    files: list[Path] = field(default_factory=list)
    named: set[Path] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)

    def sentence(self) -> str:
        """What was left out, for a person; empty when nothing was."""
        order = sorted(self.left_out.items(), key=_rank)
        said = [f"{what}: {count}{_HINTS.get(what, '')}" for what, count in order[:_MOST_SAID]]
        if others := sum(count for _, count in order[_MOST_SAID:]):
            said.append(f"others: {others}")
        return ", ".join(said)


def _rank(kind: tuple[str, int]) -> tuple[bool, int, str]:
    """Order of what was left out: what can be taken after all first, then the commonest."""
    what, count = kind
    return what not in _HINTS, -count, what


def text_files(paths: Sequence[Path], *, hidden: bool = False) -> Found:
    """Files of text in `paths` and in the folders among them.

    In a folder, what its owner may not mean is left out: files that are no text by their name,
    hidden ones (`.git`), and links, which may lead out of it. A file that is named itself is taken
    when its name is one of text, also when it is hidden or a link.

    Args:
        paths: files and folders.
        hidden: take hidden files and folders too.

    Raises:
        InvalidInput: a path does not exist, is no text file or cannot be read, or there is nothing
            to upload.
    """
    found = Found()
    for path in paths:
        if path.is_dir():
            _walk(path, found, hidden=hidden)
        elif path.is_file() and path.suffix.lower() in _WANTED:
            found.files.append(path)
            found.named.add(path)
        elif not path.exists():
            raise InvalidInput(f"{path} does not exist: check how it is written.")
        else:
            raise InvalidInput(
                f"{path} is no text to upload: give folders or files named {_NAMES}."
            )
    if not found.files:
        others = found.sentence()
        raise InvalidInput(
            f"There are no files named {_NAMES} in what was given"
            + (f"; left out: {others}." if others else ".")
        )
    found.files = sorted(set(found.files))
    return found


def _walk(folder: Path, found: Found, *, hidden: bool) -> None:
    def refuse(error: OSError) -> None:
        raise InvalidInput(
            f"{error.filename} cannot be read ({error.strerror}): make it readable or leave it out."
        ) from error

    for root, folders, files in os.walk(folder, onerror=refuse):
        here = Path(root)
        for name in list(folders):
            if what := _not_taken(here / name, hidden=hidden):
                folders.remove(name)
                found.left_out[what] += 1
        for name in files:
            path = here / name
            if what := _not_taken(path, hidden=hidden) or _no_text(path):
                found.left_out[what] += 1
            else:
                found.files.append(path)


def _not_taken(path: Path, *, hidden: bool) -> str:
    if path.is_symlink():
        return LINKS
    if path.name.startswith(".") and not hidden:
        return HIDDEN
    return ""


def _no_text(path: Path) -> str:
    if path.suffix.lower() not in _WANTED:
        return f"files named *{path.suffix}" if path.suffix else "files without an ending"
    return "" if path.is_file() else "files of a special kind"


def documents(
    files: Sequence[Path], advance: Advance, *, follow: Collection[Path] = ()
) -> Iterator[data.Document]:
    """One document per text file, one per line of a .jsonl file; several for a long text.

    Ids are paths below the folder that all files share, so that they, and with them the split that
    a prepare job makes, do not depend on where the folder lies.

    Args:
        files: from `text_files`.
        advance: called with the bytes of each file when it is read.
        follow: those that may be links. Another that has become one since is refused.

    Raises:
        InvalidInput: a file is not UTF-8 text, or a line is not a JSON object with `text`.
    """
    shared = Path(os.path.commonpath([file.absolute().parent for file in files]))
    for file in files:
        name = _printed(file.absolute().relative_to(shared).as_posix())
        try:
            # A mark of the byte order belongs to the file and not to its text.
            opener = None if file in follow else _no_link
            with open(file, encoding="utf-8-sig", opener=opener) as text:
                if file.suffix.lower() == LINES_SUFFIX:
                    yield from _lines(file, name, text)
                else:
                    yield from _texts(file, name, text)
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"{_printed(file)} is not UTF-8 text: convert it or leave it out."
            ) from error
        except OSError as error:
            raise InvalidInput(
                f"{_printed(file)} cannot be read ({error.strerror}): "
                "make it readable or leave it out."
            ) from error
        advance(file.stat().st_size)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _printed(path: Path | str) -> str:
    """A path as text, also where its name is not UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _texts(file: Path, name: str, text: TextIO) -> Iterator[data.Document]:
    source = _printed(file.name)
    if file.stat().st_size <= LARGEST_DOCUMENT:
        yield data.Document(id=name, text=_checked(file, text.read()), source=source)
    else:
        yield from _parts(name, source, lambda count: _checked(file, text.read(count)))


def _parts(identity: str, source: str, read: Callable[[int], str]) -> Iterator[data.Document]:
    """A long text as several documents; `read` returns its next characters, fewer at its end."""
    left = ""
    for number in itertools.count(1):
        text = left + read(PART_CHARACTERS - len(left))
        last = len(text) < PART_CHARACTERS
        part, left = (text, "") if last else _cut(text)
        if part:
            yield data.Document(id=f"{identity}#{number}", text=part, source=source)
        if last:
            return


def _cut(text: str) -> tuple[str, str]:
    """A text in two, at the last end of a paragraph, of a line or of a word in its second half."""
    for end in ("\n\n", "\n", " "):
        place = text.rfind(end, len(text) // 2)
        if place >= 0:
            return text[: place + len(end)], text[place + len(end) :]
    return text, ""


def _checked(file: Path, text: str) -> str:
    if "\0" in text:
        # Binary files, and UTF-16 without its mark, may be UTF-8 by accident.
        raise InvalidInput(
            f"{_printed(file)} holds NUL bytes: it is binary or UTF-16; convert it to UTF-8."
        )
    return text


def _lines(file: Path, name: str, lines: TextIO) -> Iterator[data.Document]:
    for number in itertools.count(1):
        line = lines.readline(LONGEST_LINE + 1)
        if not line:
            return
        where = f"{_printed(file)} line {number}"
        if len(line) > LONGEST_LINE:
            raise InvalidInput(
                f"{where} has more than {LONGEST_LINE:,} characters: make several documents of it."
            )
        if not line.strip():
            continue
        value = strict_json.read_value(where, line)
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            raise InvalidInput(f"{where} is no JSON object with a `text`: mend it.")
        identity = _word(where, value, "id", f"{name}:{number}")
        source = _word(where, value, "source", _printed(file.name))
        text = value["text"]
        if len(text.encode()) <= LARGEST_DOCUMENT:
            yield data.Document(id=identity, text=text, source=source)
        else:
            yield from _parts(identity, source, io.StringIO(text).read)


def _word(where: str, value: dict[str, Any], key: str, default: str) -> str:
    """A text or a number of a document; the default where it has none."""
    found = value.get(key)
    if found is None:
        return default
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        raise InvalidInput(f"{where} has a `{key}` that is no text: mend it.")
    return str(found)


def dataset_messages(
    parent: str, request_id: str, uploads: Iterator[data.Document]
) -> Iterator[data.UploadDatasetVersionRequest]:
    """Messages of `UploadDatasetVersion`: the dataset first, then documents in batches."""
    yield data.UploadDatasetVersionRequest(parent=parent, request_id=request_id)
    batch: list[data.Document] = []
    size = 0
    for document in uploads:
        length = document.ByteSize()
        if batch and size + length > MESSAGE_BYTES:
            yield data.UploadDatasetVersionRequest(documents=batch)
            batch, size = [], 0
        batch.append(document)
        size += length
    if batch:
        yield data.UploadDatasetVersionRequest(documents=batch)


def model_files(folder: Path) -> list[Path]:
    """Files of a model's folder, sorted; hidden ones are left out.

    Raises:
        InvalidInput: there is no such folder, or no config.json in it.
    """
    if not (folder / "config.json").is_file():
        raise InvalidInput(
            f"{folder} is no model: give a folder in the Hugging Face layout, with config.json."
        )
    return sorted(
        path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")
    )


def model_messages(
    parent: str, request_id: str, files: Sequence[Path], advance: Advance
) -> Iterator[models.ImportModelVersionRequest]:
    """Messages of `ImportModelVersion`: the model first, then each file in pieces of 1 MiB."""
    yield models.ImportModelVersionRequest(parent=parent, request_id=request_id)
    for path in files:
        with path.open("rb") as file:
            empty = True
            while piece := file.read(MESSAGE_BYTES):
                yield models.ImportModelVersionRequest(file=path.name, data=piece)
                advance(len(piece))
                empty = False
        if empty:
            yield models.ImportModelVersionRequest(file=path.name)
