"""Prepare jobs: text versions in; clean, deduplicated, redacted tokens with a tokenizer out."""
