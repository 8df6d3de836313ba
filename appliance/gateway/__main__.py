"""`python -m appliance.gateway --config gateway.toml`."""

from __future__ import annotations

import sys

from appliance.gateway.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
