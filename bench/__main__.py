"""Run every bench, or the ones named: `python -m bench sealed_load`."""

import importlib
import sys

BENCHES = (
    "sealed_load",
    "gateway_relay",
    "prompt_pause",
    "hybrid_trainer",
    "policy_change",
    "hostile_text",
    "redaction",
    "flood",
)


def main() -> int:
    """Run the named benches in order; 1 when one misses a bar of its own, 2 for an unknown name."""
    names = sys.argv[1:] or BENCHES
    unknown = sorted(set(names) - set(BENCHES))
    if unknown:
        print(f"no bench named {', '.join(unknown)}; there are: {', '.join(BENCHES)}")
        return 2
    ends = [importlib.import_module(f"bench.{name}").main() for name in names]
    return int(any(ends))


if __name__ == "__main__":
    sys.exit(main())
