"""`python -m appliance.jobs`: the leader of one job on one node, started by the node's agent."""

from __future__ import annotations

import sys

from appliance.jobs.runtime.start import start
from appliance.kinds import functions

if __name__ == "__main__":
    sys.exit(start(sys.argv[1:], functions()))
