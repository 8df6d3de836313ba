"""PROCESS: the `appliance` command, one file per noun; `appliance.client` calls servers for it."""

from __future__ import annotations

import importlib.util
import sys

_NEEDED = ("click", "yaml", "qrcode", "rich")


def run() -> None:
    """What the `appliance` of an installation starts; says what is missing when it is the SDK's."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"error: the command needs {', '.join(missing)}, and this is the Python SDK alone: "
            "install `appliance[cli]`, on a server `appliance[server]`"
        )
    from appliance.cli.main import main  # noqa: PLC0415 - what it needs may be missing

    main()
