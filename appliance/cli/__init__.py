"""PROCESS: the `appliance` command, one file per noun; it calls servers through `appliance.client`."""
