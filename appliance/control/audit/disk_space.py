"""Says that the disk of the audit log is about to be full, before calls are refused.

Rules kept here: it is said once when the free space falls below the threshold, and again only when
it has been above it by a tenth in between; it is recorded, and the control plane goes on serving.

Called by the composition root, once a minute.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from appliance.control.audit.system import Records
from appliance.core.files import free_bytes

LOW = "disk.low"
_logger = logging.getLogger(__name__)


class DiskSpaceWatch:
    """Looks at the disk.

    Args:
        folder: of the audit log.
        threshold: bytes; 0 for never.
        records: where it is recorded.
        free: bytes that are free on the disk of a folder.
    """

    def __init__(
        self,
        folder: Path,
        threshold: int,
        records: Records,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._folder = folder
        self._threshold = threshold
        self._records = records
        self._free = free
        self._is_low = False

    def check(self) -> None:
        """Say it when it has become low. Raises OSError when there is no folder any more."""
        free = self._free(self._folder)
        if free < self._threshold and not self._is_low:
            self._is_low = True
            _logger.warning(
                "the disk of the control plane has %d MiB left, less than audit.warning_bytes: when"
                " it is full every call is refused. Archive the audit log (`appliance audit"
                " archive`), move the object store, or make the disk larger",
                free >> 20,
            )
            self._records.note(LOW, "", "LOW", free_bytes=free)
        elif free >= self._threshold + self._threshold // 10:
            self._is_low = False
