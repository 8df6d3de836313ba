"""A command line that was typed, and what came of it."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


class Run(Protocol):
    def __call__(self, *arguments: str, stdin: str = "") -> Result: ...
