"""What lives of a gateway's process have left to report: read from the files of the spool.

A life of the process is a boot. Each of its files has a name that says how many boots there were
before, which one this is, and which file of it; what stands in a file is in `frames`. Of a file
that is damaged what comes before the damage is told, and that something is missing.

Called by `spool`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError

from appliance.api.serving.v1 import routing_service_pb2
from appliance.gateway.frames import FrameKind, frames_of, length_of

logger = logging.getLogger(__name__)

SUFFIX = ".spool"
DAMAGED = ".damaged"
INTERRUPTED = "INTERRUPTED"
"""Reason of a call whose gateway ended before it did."""
_NAME = re.compile(rf"(\d{{8,}})-([0-9a-f]{{16}})-(\d{{6,}})\{SUFFIX}")

Usage = routing_service_pb2.Usage
Entry = routing_service_pb2.UsageEntry


@dataclass
class HeldFile:
    """A file, and the numbers in it that are not in the audit chain yet.

    `carried` are calls of earlier files that were written down again in it, not durably yet.
    """

    path: Path
    damaged: bool = False
    pending: set[int] = field(default_factory=set)
    carried: set[int] = field(default_factory=set)


@dataclass
class Boot:
    """What one life of the process has left to report.

    Attributes:
        name: of the boot.
        waiting: entries that were not reported, by number.
        files: that are not deleted yet.
        newest: its largest number.
    """

    name: str
    waiting: dict[int, Entry] = field(default_factory=dict)
    files: list[HeldFile] = field(default_factory=list)
    newest: int = 0

    def reported(self, numbers: Iterable[int]) -> None:
        """These entries are in the audit chain: forget them."""
        for number in numbers:
            self.waiting.pop(number, None)
            for file in self.files:
                file.pending.discard(number)

    def over(self, current: list[HeldFile]) -> list[HeldFile]:
        """Files that hold nothing more, but the current one; they are forgotten here."""
        done = [file for file in self.files if file not in current and not file.pending]
        self.files = [file for file in self.files if file not in done]
        return done


def file_name(before: int, boot: str, number: int) -> str:
    """Of file `number` of a boot that so many came before."""
    return f"{before:08d}-{boot}-{number:06d}{SUFFIX}"


def left_in(folder: Path) -> tuple[dict[str, list[Path]], int]:
    """Files of processes of before by boot, the oldest boot first; how many lives there were."""
    found: list[tuple[int, int, str, Path]] = []
    for path in folder.glob(f"*{SUFFIX}"):
        if name := _NAME.fullmatch(path.name):
            found.append((int(name[1]), int(name[3]), name[2], path))
        else:
            logger.warning("%s is no file of this spool: it is left alone", path.name)
    boots: dict[str, list[Path]] = {}
    for _, _, boot, path in sorted(found):
        boots.setdefault(boot, []).append(path)
    return boots, 1 + max((each[0] for each in found), default=0)


def delete(files: Iterable[HeldFile]) -> None:
    """Delete files that hold nothing more; one that is damaged is kept under another name."""
    for file in files:
        try:
            if file.damaged:
                file.path.rename(file.path.with_suffix(DAMAGED))
            else:
                file.path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be deleted: %s", file.path.name, error.strerror)


def recovered(name: str, paths: list[Path]) -> Boot:
    """What an ended process has left: what it had to tell, and each call that it has not ended.

    Room that its files do not use is given back. Of a file that is damaged what comes before that
    is told, it is kept under another name, and the boot says that something is missing.
    """
    boot = Boot(name)
    begun: dict[int, bytes] = {}
    for path in paths:
        data, file = path.read_bytes(), HeldFile(path)
        boot.files.append(file)
        for frame in frames_of(data):
            entry = Entry(number=frame.number)
            part = entry.refusals if frame.kind is FrameKind.REFUSALS else entry.usage
            try:
                part.ParseFromString(frame.message)
            except DecodeError:
                file.damaged = True
                continue
            file.pending.add(frame.number)
            if frame.kind is FrameKind.BEGIN:
                begun[frame.number] = frame.message
                continue
            begun.pop(frame.number, None)
            boot.waiting[frame.number] = entry
        used = length_of(data)
        file.damaged = file.damaged or bool(data[used:].strip(b"\0"))
        if file.damaged:
            logger.error("%s is damaged: it is kept as *%s", path.name, DAMAGED)
            continue
        with contextlib.suppress(OSError):
            os.truncate(path, used)
    for number in begun.keys() - boot.waiting.keys():
        usage = Usage()
        usage.ParseFromString(begun[number])
        usage.reason = INTERRUPTED
        boot.waiting[number] = Entry(number=number, usage=usage)
    # One more than there is: a number that is missing.
    lost = any(file.damaged for file in boot.files)
    boot.newest = max(boot.waiting, default=0) + lost
    return boot
