"""Cut documents and model files into the messages of an upload.

A message stays well below the 4 MiB that servers take. Files are read as they are sent; nothing is
held in memory as a whole but a single text document.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from appliance.api.data.v1 import dataset_service_pb2 as data
from appliance.api.models.v1 import model_service_pb2 as models
from appliance.core import strict_json
from appliance.core.errors import InvalidInput

MESSAGE_BYTES = 1 << 20
TEXT_SUFFIXES = (".txt", ".md", ".rst")
Advance = Callable[[int], None]


def text_files(paths: Sequence[Path]) -> list[Path]:
    """Files of text in `paths` and in the folders among them, sorted, each once.

    Raises:
        InvalidInput: a path does not exist, is no text file, or there is nothing to upload.
    """
    wanted = (*TEXT_SUFFIXES, ".jsonl")
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += (each for each in path.rglob("*") if each.suffix in wanted and each.is_file())
        elif path.is_file() and path.suffix in wanted:
            found.append(path)
        elif not path.exists():
            raise InvalidInput(f"{path} does not exist: check how it is written.")
        else:
            raise InvalidInput(
                f"{path} is no text to upload: give folders or files named {', '.join(wanted)}."
            )
    if not found:
        raise InvalidInput(f"There are no files named {', '.join(wanted)} in what was given.")
    return sorted(set(found))


def documents(files: Sequence[Path], advance: Advance) -> Iterator[data.Document]:
    """One document per text file, one per line of a .jsonl file.

    Ids are paths below the folder that all files share, so that they, and with them the split that
    a prepare job makes, do not depend on where the folder lies.

    Args:
        files: from `text_files`.
        advance: called with the bytes of each file when it is read.

    Raises:
        InvalidInput: a file is not UTF-8 text, or a line is not a JSON object with `text`.
    """
    shared = Path(os.path.commonpath([file.absolute().parent for file in files]))
    for file in files:
        name = file.absolute().relative_to(shared).as_posix()
        try:
            if file.suffix == ".jsonl":
                yield from _lines(file, name)
            else:
                yield data.Document(id=name, text=_text(file), source=file.name)
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{file} is not UTF-8 text: convert it or leave it out.") from error
        advance(file.stat().st_size)


def _text(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    if "\0" in text:
        # Binary files, and UTF-16 without its mark, may be UTF-8 by accident.
        raise InvalidInput(f"{file} holds NUL bytes: it is binary or UTF-16; convert it to UTF-8.")
    return text


def _lines(file: Path, name: str) -> Iterator[data.Document]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = strict_json.read_value(f"{file} line {number}", line)
                text = value["text"]
            except (TypeError, KeyError) as error:
                raise _no_document(file, number) from error
            if not isinstance(text, str):
                raise _no_document(file, number)
            identity, source = value.get("id", f"{name}:{number}"), value.get("source", file.name)
            yield data.Document(id=str(identity), text=text, source=str(source))


def _no_document(file: Path, line: int) -> InvalidInput:
    return InvalidInput(f"{file} line {line} is no JSON object with a `text`: mend it.")


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
