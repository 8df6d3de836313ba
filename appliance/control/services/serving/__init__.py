"""Endpoints, replicas and gateways, and what gateways are told."""
