"""Rows that open something are believed only with a MAC."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make room for the MACs; the start that follows computes them."""
    op.create_table(
        "row_mac",
        sa.Column("row", sa.Text(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("row", name="pk_row_mac"),
    )
    op.add_column("meta", sa.Column("row_columns", sa.JSON(), nullable=True))
    op.add_column("meta", sa.Column("row_macs", sa.LargeBinary(), nullable=True))
