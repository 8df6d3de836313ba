"""Puts the watchdog into the processes of an appliance whose tests ask for it.

Python imports this at its start when the folder is in PYTHONPATH. So no process of the product
knows of it, and none can switch it on. Only control plane, gateway and agent are watched: the
command is started too often, and what the agent starts gets neither variable.
"""

import os
import sys

_WATCHED = ("appliance.control", "appliance.gateway", "appliance.node")

if (_folder := os.environ.get("LOOP_WATCHDOG")) and any(name in sys.orig_argv for name in _WATCHED):
    import loop_watchdog  # type: ignore[import-not-found]  # beside this file

    loop_watchdog.watch(_folder)
