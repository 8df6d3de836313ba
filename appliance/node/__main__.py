"""`python -m appliance.node --config node.toml`: the agent of one server."""

from __future__ import annotations

import sys

from appliance.node.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
