"""How often a node says that it is there, and when it counts as silent: one truth for both ends.

The pages and the comments of the protos say the same; a test compares them. Called by the agent and
by the control plane.
"""

from __future__ import annotations

HEARTBEAT_SECONDS = 1.0
SILENT_SECONDS = 6 * HEARTBEAT_SECONDS
"""A node that is not heard for so long gets no new work."""
