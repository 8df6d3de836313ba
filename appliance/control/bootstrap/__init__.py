"""From a data directory to a running control plane: made, opened, put together, rescued."""
