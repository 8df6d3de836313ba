"""What `model import --dry-run` says of a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from appliance.core import families
from appliance.core.families import FamilyUse

if TYPE_CHECKING:
    from appliance.client.model_folder import ModelFolder


def of(found: ModelFolder) -> dict[str, Any]:
    """What would be sent and left out, what the model is, and what can be done with it."""
    config, works = found.config, found.config.family.works
    return {
        "family": config.family.name,
        "architecture": config.architecture,
        "format": config.format,
        "parameters": found.parameters,
        "context_length": config.sizes.context_length,
        "size_bytes": found.size,
        "files": [{"file": file, "size_bytes": size} for file, size in found.files],
        "left_out": [{"file": file, "reason": why} for file, why in found.left_out.items()],
        "works": [use.value for use in FamilyUse if use in works],
        "does_not_work": [
            {"what": use.value, "reason": families.reason(config.family, use)}
            for use in FamilyUse
            if use not in works
        ],
    }
