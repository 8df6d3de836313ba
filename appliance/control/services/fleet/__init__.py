"""Machines: how they join, what they offer, what is leased to them."""
