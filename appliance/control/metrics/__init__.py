"""Prometheus gauges of the state; read when somebody asks."""
