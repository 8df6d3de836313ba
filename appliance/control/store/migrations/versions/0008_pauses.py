"""Jobs can be paused by somebody, and say how long they wait for a silent node."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns: nobody has paused a job, and each waits as the site says."""
    for name in ("pause", "on_lost"):
        op.add_column(
            "job",
            sa.Column(name, sa.JSON(), nullable=False, server_default=sa.text("'{}'")),
        )
    op.add_column(
        "job", sa.Column("pauses", sa.Integer(), nullable=False, server_default=sa.text("0"))
    )
