"""The files of a model on their way into a sealed version: checked while they pass by.

Rules kept here: what could hold code is refused by its name, before its bytes; weights are never
held in memory, of other files one at a time (64 MiB at most).

The attack: see `core.model_files`, `core.model_config` and `services.data.weights`, which judge.
Called by `services.data.models` for an import in one stream, by `services.data.upload_tasks` for
one by part.
"""

from __future__ import annotations

import hashlib
from typing import Any

from appliance.control.services.data import model_facts
from appliance.control.services.data.weights import HeaderCheck, Tensor
from appliance.core import model_config, model_files
from appliance.core.errors import InvalidInput
from appliance.core.model_config import CONFIG
from appliance.core.model_files import INDEX, is_weights
from appliance.core.names import shown
from appliance.core.numbers import written
from appliance.core.strict_json import read_object
from appliance.crypto.artifacts import ArtifactWriter
from appliance.crypto.sealed_writer import SealedWriter

MAX_FILES = 1000


class ModelFiles:
    """Checks and seals the files of one model: `add` their pieces, `close`; or `abort`.

    Args:
        writer: of the version; its caller finishes it.
    """

    def __init__(self, writer: ArtifactWriter) -> None:
        self._writer = writer
        self._digest = hashlib.sha256()
        self._file = ""
        self._kept = False
        self._seen: set[str] = set()
        self._buffer = bytearray()
        self._header: HeaderCheck | None = None
        self._sealed: SealedWriter | None = None
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._texts: dict[str, bytes] = {}
        self._highest: dict[str, int] = {}
        self._weight_bytes = 0

    @property
    def digest(self) -> bytes:
        """SHA-256 over names and contents in their order: what a repeat is compared by."""
        return self._digest.digest()

    def add(self, file: str, data: bytes) -> None:
        """Take the next bytes of a file, which follow each other. Raises InvalidInput."""
        if file != self._file:
            self._end_file()
            self._begin_file(file)
        self._digest.update(data)
        if not self._kept:
            return
        if self._header is not None and self._sealed is not None:
            self._header.feed(data)
            self._sealed.write(data)
            self._weight_bytes += len(data)
            return
        self._buffer += data
        if len(self._buffer) > model_files.largest(self._file):
            why = f"is larger than {model_files.largest(self._file)} bytes"
            raise InvalidInput(f"{self._file} {why}.", fields={self._file: why})

    def close(self) -> dict[str, Any]:
        """The last file has ended: check the whole; its facts. Raises InvalidInput."""
        self._end_file()
        model_files.check_complete(self._seen)
        if INDEX in self._texts:
            index = read_object(INDEX, self._texts[INDEX])
            model_files.check_index(index, self._tensors)
        config = model_config.check_config(read_object(CONFIG, self._texts[CONFIG]))
        model_files.check_ids(config, self._highest)
        return model_facts.facts(config, self._tensors, self._weight_bytes)

    def abort(self) -> None:
        """Drop the file that is open."""
        if self._sealed is not None:
            self._sealed.abort()
            self._sealed = None

    def _begin_file(self, file: str) -> None:
        kept = model_files.check_name(file)
        if file in self._seen:
            why = "comes in two places; send the pieces of a file after each other"
            raise InvalidInput(f"{shown(file)} {why}.", fields={"file": why})
        if len(self._seen) >= MAX_FILES:
            raise InvalidInput(f"a model has at most {written(MAX_FILES)} files")
        self._seen.add(file)
        self._digest.update(f"\0{file}\0".encode())
        self._file, self._kept = file, kept
        if is_weights(file):
            self._header = HeaderCheck(file)
            self._sealed = self._writer.create(file)

    def _end_file(self) -> None:
        if self._header is not None and self._sealed is not None:
            self._header.finish()
            self._sealed.close()
            self._tensors[self._file] = self._header.tensors
        elif self._kept:
            data = bytes(self._buffer)
            self._highest[self._file] = model_files.check_file(self._file, data)
            with self._writer.create(self._file) as sealed:
                sealed.write(data)
            if self._file in {INDEX, CONFIG}:
                self._texts[self._file] = data
        self._buffer.clear()
        self._header = self._sealed = None
        self._kept = False
