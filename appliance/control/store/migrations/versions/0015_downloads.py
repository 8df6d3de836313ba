"""A project says whether what is in it may be downloaded: those that are there do not."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column(
        "project",
        sa.Column("allow_downloads", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
