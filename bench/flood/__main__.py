"""Run floods by name: `python -m bench.flood pings resets --rounds 3`."""

import sys

from bench.flood import main

if __name__ == "__main__":
    sys.exit(main())
