"""Jobs: accepted, run on nodes, paused, resumed, registered."""
