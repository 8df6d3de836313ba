"""A zero that was asked for is a zero: the value of a field, or a default when it was left out.

`x or default` cannot tell the two. Called wherever a field with presence has a default; pure.
"""

from __future__ import annotations

from typing import Protocol, TypeVar, cast

T = TypeVar("T")


class Fields(Protocol):
    """A protobuf message; this package imports the standard library alone."""

    def HasField(self, field_name: str, /) -> bool:  # noqa: N802 - protobuf names it
        """Whether a field was set."""


def given(message: Fields, field: str, default: T) -> T:
    """The value of a field with presence, or the default."""
    return cast("T", getattr(message, field)) if message.HasField(field) else default
