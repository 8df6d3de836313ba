"""The shared language of all processes; it imports the standard library alone."""
