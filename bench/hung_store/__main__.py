"""Run it alone: `python -m bench.hung_store`."""

import sys

from bench.hung_store import main

if __name__ == "__main__":
    sys.exit(main())
