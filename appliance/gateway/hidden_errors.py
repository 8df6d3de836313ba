"""Keeps what a library says of a text out of logs and answers: its exceptions may quote the text.

The attack: text that makes a library fail, to be read in a log. Called by
`appliance.gateway.pipeline`, and by both fronts for what they do before and after it.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path

from appliance.core.errors import ApplianceError, Internal

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def hiding_errors(request_id: str) -> Iterator[None]:
    """Log where a bug is, and raise Internal without its words; errors of ours pass."""
    try:
        yield
    except ApplianceError:
        raise
    except Exception as bug:  # noqa: BLE001 - whatever it is, it may carry text
        raise fault(bug, request_id) from None


def fault(bug: Exception, request_id: str) -> Internal:
    """What a caller hears of a bug; the log hears its kind and its place."""
    logger.error("a call failed: %s at %s", type(bug).__name__, _places(bug))
    return Internal(
        f"something went wrong in the gateway; its log has the place under request id {request_id}"
    )


def _places(bug: BaseException) -> str:
    """Where an exception was raised: files and lines, and nothing of what was in them."""
    frames = traceback.extract_tb(bug.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
