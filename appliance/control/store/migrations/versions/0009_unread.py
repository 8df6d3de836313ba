"""Columns that nobody has read go."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Drop them: how often a certificate was replaced, and the serial number of a replica's."""
    op.drop_column("node", "certificate_generation")
    op.drop_column("gateway", "certificate_generation")
    op.drop_column("replica", "certificate_serial")
