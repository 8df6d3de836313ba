"""What is wrong with a request: every field at once, one sentence each.

Called by the services that accept requests with many fields, and by the kinds of jobs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from appliance.core import values
from appliance.core.errors import InvalidInput

if TYPE_CHECKING:
    from google.protobuf.message import Message


@dataclass
class Problems:
    """What is wrong with a request, by field."""

    fields: dict[str, str] = field(default_factory=dict)

    def add(self, path: str, sentence: str) -> None:
        """Note a problem; the first one of a field stands."""
        self.fields.setdefault(path, sentence)

    def check(self, path: str, *, holds: bool, sentence: str) -> bool:
        """Note a problem unless `holds`; returns `holds`."""
        if not holds:
            self.add(path, sentence)
        return holds

    def take(self, message: Message, at: str = "") -> None:
        """Note each field of a message, which stands at a path, that its proto does not allow."""
        for path, sentence in values.wrong(message, at).items():
            self.add(path, sentence)

    def raise_if_any(self) -> None:
        """Raise InvalidInput with every problem."""
        if self.fields:
            text = "; ".join(f"{path} {sentence}" for path, sentence in self.fields.items())
            raise InvalidInput(f"{text}.", fields=self.fields)
