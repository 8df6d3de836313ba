"""Run floods by name: `python -m bench.flood pings resets --rounds 3`."""

import sys

from bench.flood import command

if __name__ == "__main__":
    sys.exit(command())
