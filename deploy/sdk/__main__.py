"""Write `appliance/client/generated` from the protos; called by `make proto`."""

import sys

from deploy.sdk.generate import FOLDER, generated


def main() -> int:
    """Write each file."""
    for name, text in generated().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
