"""Find text in files and folders, and read documents out of it.

Rules kept here:
* memory does not grow with what is found: files are found again, in the same order, each time they
  are asked for, and what is held is the names of one folder and of those above it, one line of a
  .jsonl file, and otherwise a text of at most `MAX_DOCUMENT`;
* in a folder, what its owner may not mean is left out, and said.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from appliance.api.data.v1 import dataset_service_pb2 as data
from appliance.core import strict_json
from appliance.core.errors import InvalidInput
from appliance.core.names import shown

MAX_DOCUMENT = 3 << 20
"""Bytes of one document that the control plane takes; a longer text becomes several."""
PART_CHARACTERS = 1 << 18
"""Of each of them: at most 1 MiB, whatever the characters are."""
TEXT_SUFFIXES = (".txt", ".md", ".rst")
LINES_SUFFIX = ".jsonl"
_WANTED = (*TEXT_SUFFIXES, LINES_SUFFIX)
_NAMES = ", ".join(_WANTED)
LINKS, HIDDEN = "links", "hidden"
_HINTS = {LINKS: " (name what they lead to)", HIDDEN: " (--hidden takes them)"}
_MAX_SAID = 10
"""Kinds of what was left out that are named."""
MAX_ID = 256
MAX_SOURCE = 1024
"""Characters of them that the control plane takes."""
MAX_LINE = 1 << 24
"""Bytes of a line of a .jsonl file, which is held as a whole."""
Advance = Callable[[int], None]


@dataclass
class Found:
    """Files to upload, and what was seen beside them; iterating finds them again, each once.

    Attributes:
        roots: files and folders that were named, sorted.
        hidden: whether hidden files and folders are taken too.
        count: files.
        size: bytes of them.
        shared: the folder that all files share.
        left_out: how many files and folders were not taken, by what they are.
    """

    roots: Sequence[Path]
    hidden: bool = False
    count: int = 0
    size: int = 0
    shared: Path = Path()
    left_out: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[tuple[Path, bool]]:
        """Each file, and whether it was named itself; only such a one may be a link."""
        roots = set(self.roots)
        for root in self.roots:
            if root.is_dir():
                yield from ((path, False) for path in self._walk(root, roots, None))
            else:
                yield root, True

    def look(self) -> None:
        """Count what is there. Raises InvalidInput for a path that gives no text."""
        roots, above = set(self.roots), ""
        for root in self.roots:
            if not root.is_dir():
                _check_named(root)
            files = self._walk(root, roots, self.left_out) if root.is_dir() else iter([root])
            for path in files:
                self.count += 1
                self.size += path.stat().st_size
                folder = str(path.absolute().parent)
                above = os.path.commonpath([above, folder]) if above else folder
        self.shared = Path(above)

    def sentence(self) -> str:
        """What was left out, for a person; empty when nothing was."""
        order = sorted(self.left_out.items(), key=_rank)
        said = [f"{what}: {count}{_HINTS.get(what, '')}" for what, count in order[:_MAX_SAID]]
        if others := sum(count for _, count in order[_MAX_SAID:]):
            said.append(f"others: {others}")
        return ", ".join(said)

    def _walk(
        self, folder: Path, roots: set[Path], left_out: Counter[str] | None
    ) -> Iterator[Path]:
        """The files of text in a folder and below, by name. What was named itself is not here."""
        try:
            names = sorted(os.listdir(folder))  # noqa: PTH208 - names alone are held
            for name in names:
                path = folder / name
                mode = os.lstat(path).st_mode
                what = _not_taken(name, mode, hidden=self.hidden)
                if path in roots:
                    continue
                if what:
                    if left_out is not None:
                        left_out[what] += 1
                elif stat.S_ISDIR(mode):
                    yield from self._walk(path, roots, left_out)
                else:
                    yield path
        except OSError as error:
            raise InvalidInput(
                f"{_printed(error.filename)} cannot be read ({error.strerror}): make it readable "
                "or leave it out."
            ) from error


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
    found = Found(sorted(set(paths)), hidden=hidden)
    found.look()
    if not found.count:
        others = found.sentence()
        raise InvalidInput(
            f"There are no files named {_NAMES} in what was given"
            + (f"; left out: {others}." if others else ".")
        )
    return found


def _check_named(path: Path) -> None:
    if not path.exists():
        raise InvalidInput(f"{_printed(path)} does not exist: check how it is written.")
    if not path.is_file() or path.suffix.lower() not in _WANTED:
        raise InvalidInput(
            f"{_printed(path)} is no text to upload: give folders or files named {_NAMES}."
        )


def _not_taken(name: str, mode: int, *, hidden: bool) -> str:
    """What an entry of a folder is, when it is not taken; empty when it is."""
    if stat.S_ISLNK(mode):
        return LINKS
    if name.startswith(".") and not hidden:
        return HIDDEN
    if stat.S_ISDIR(mode):
        return ""
    suffix = os.path.splitext(name)[1]  # noqa: PTH122 - many names
    if suffix.lower() not in _WANTED:
        return f"files named *{suffix}" if suffix else "files without an ending"
    return "" if stat.S_ISREG(mode) else "files of a special kind"


def documents(found: Found, advance: Advance) -> Iterator[data.Document]:
    """One document per text file, one per line of a .jsonl file; several for a long text.

    Ids are paths below the folder that all files share, so that they, and with them the split that
    a prepare job makes, do not depend on where the folder lies.

    Args:
        found: from `text_files`. A file that has become a link since is refused.
        advance: called with the bytes of each file when it is read.

    Raises:
        InvalidInput: a file is not UTF-8 text, or a line is not a JSON object with `text`; files
            came or went since they were counted.
    """
    count = 0
    for file, named in found:
        count += 1
        name = _printed(file.absolute().relative_to(found.shared).as_posix())
        try:
            # A mark of the byte order belongs to the file and not to its text.
            opener = None if named else _no_link
            if file.suffix.lower() == LINES_SUFFIX:
                with open(file, "rb", opener=opener) as lines:
                    yield from _lines(file, name, lines)
            else:
                with open(file, encoding="utf-8-sig", opener=opener) as text:
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
    if count != found.count:
        raise InvalidInput(
            f"There were {found.count} files to upload and are {count} now: let nothing change "
            "them while they are read."
        )


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _printed(path: Path | str) -> str:
    """A path as text, also where its name is not UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _texts(file: Path, name: str, text: TextIO) -> Iterator[data.Document]:
    source = _printed(file.name)
    if file.stat().st_size <= MAX_DOCUMENT:
        yield _document(_printed(file), name, _checked(file, text.read()), source)
    else:
        read: Callable[[int], str] = lambda count: _checked(file, text.read(count))  # noqa: E731
        yield from _parts(_printed(file), name, source, read)


def _document(where: str, identity: str, text: str, source: str) -> data.Document:
    """A document. Raises InvalidInput for what the control plane would refuse; says where it is."""
    if not 0 < len(identity) <= MAX_ID or not identity.isprintable():
        raise InvalidInput(
            f"{where} has the id {shown(identity)}, which is not 1 to {MAX_ID} printable "
            "characters: give it another one (that of a file is its path)."
        )
    if len(source) > MAX_SOURCE:
        raise InvalidInput(
            f"{where} has a `source` of more than {MAX_SOURCE:,} characters: shorten it."
        )
    return data.Document(id=identity, text=text, source=source)


def _parts(
    where: str, identity: str, source: str, read: Callable[[int], str]
) -> Iterator[data.Document]:
    """A long text as several documents; `read` returns its next characters, fewer at its end."""
    left = ""
    for number in itertools.count(1):
        text = left + read(PART_CHARACTERS - len(left))
        last = len(text) < PART_CHARACTERS
        part, left = (text, "") if last else _cut(text)
        if part:
            yield _document(where, f"{identity}#{number}", part, source)
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


def _lines(file: Path, name: str, lines: BinaryIO) -> Iterator[data.Document]:
    for number in itertools.count(1):
        raw = lines.readline(MAX_LINE + 1)
        if not raw:
            return
        where = f"{_printed(file)} line {number}"
        if len(raw) > MAX_LINE:
            raise InvalidInput(
                f"{where} has more than {MAX_LINE:,} bytes: make several documents of it."
            )
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        del raw
        if not line.strip():
            continue
        value = strict_json.read_value(where, line)
        del line
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            raise InvalidInput(f"{where} is no JSON object with a `text`: fix it.")
        identity = _word(where, value, "id", f"{name}:{number}")
        source = _word(where, value, "source", _printed(file.name))
        text = value["text"]
        if len(text) <= MAX_DOCUMENT and len(text.encode()) <= MAX_DOCUMENT:
            yield _document(where, identity, text, source)
        else:
            yield from _parts(where, identity, source, _reader_of(text))


def _reader_of(text: str) -> Callable[[int], str]:
    """Reads a text piece by piece, without a copy of it."""
    place = 0

    def read(count: int) -> str:
        nonlocal place
        place += count
        return text[place - count : place]

    return read


def _word(where: str, value: dict[str, Any], key: str, default: str) -> str:
    """A text or a number of a document; the default where it has none."""
    found = value.get(key)
    if found is None:
        return default
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        raise InvalidInput(f"{where} has a `{key}` that is no text: fix it.")
    return str(found)
