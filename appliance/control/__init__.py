"""The control plane: one process that knows who may do what, what exists, and what has happened."""
