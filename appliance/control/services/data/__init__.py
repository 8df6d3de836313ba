"""Artifacts: datasets, tokenizers and models, and how they come in."""
