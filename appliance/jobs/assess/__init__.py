"""Assess jobs: measure what a model is worth before it is served."""
