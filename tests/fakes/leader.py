"""The leader of a job with the toy kind.

`python -m tests.fakes.leader` takes the arguments of `python -m appliance.jobs`.
"""

import sys

from appliance.jobs.runtime.start import start


def main() -> None:
    sys.exit(start(sys.argv[1:], dict.fromkeys(("prepare", "train"), "tests.fakes.toy_kind:run")))


if __name__ == "__main__":
    main()
