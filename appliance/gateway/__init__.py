"""The gateway: answers callers from replicas, decides by its own view, and outlives a replica."""
