"""Versions say which output of their job they are, apart from what they hold."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. Until now the slot of an output was the resource that it is a version of.

    Rows of running jobs are filled too: they are registered under their slot when the job is done.
    """
    op.add_column(
        "artifact_version",
        sa.Column("slot", sa.Text(), nullable=False, server_default=sa.text("''")),
    )
    op.execute("UPDATE artifact_version SET slot = kind WHERE job IS NOT NULL")
