"""The protocol of agents: what they report and what they are told."""
