"""The appliance itself: what it is, its audit log, what ends."""
