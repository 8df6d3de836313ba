"""PROCESS: the `appliance` command, one file per noun; `appliance.client` calls servers for it."""

from __future__ import annotations

import sys


def run() -> None:
    """Run the command of an installation, or say what to install where there is the SDK alone."""
    try:
        from appliance.cli.main import main  # noqa: PLC0415 - what it needs may be missing
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.exit(
            "error: the command needs more packages than the Python SDK, which is installed here: "
            "install `appliance[cli]`, on a server `appliance[server]`"
        )
    main()
