"""What work needs of a server that runs it, and what to say of a server that lacks it.

Called by the agent and by the leader of a job.
"""

from __future__ import annotations

from appliance.core.errors import FailedPrecondition

REPAIR = "install the extra node-cpu or node-gpu there, then start its agent again"


def unimportable(error: ImportError | OSError) -> FailedPrecondition:
    """What an import that failed means: a package is not there, or one of its libraries."""
    name = (error.name if isinstance(error, ImportError) else None) or "a package"
    return FailedPrecondition(f"{name.partition('.')[0]} cannot be imported on the node: {REPAIR}")
