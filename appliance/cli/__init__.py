"""PROCESS: the `appliance` command, one file per noun; `appliance.client` calls servers for it."""
