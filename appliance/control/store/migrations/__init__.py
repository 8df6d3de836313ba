"""Alembic's entry and the revisions."""
