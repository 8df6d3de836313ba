"""Keep the last output of the ranks of jobs that did not succeed, sealed."""

import sqlalchemy as sa
from alembic import op

from appliance.control.store.types import Moment

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table. Of jobs that have ended already nothing is known."""
    op.create_table(
        "job_log",
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("rank_base", sa.Integer(), nullable=False),
        sa.Column("key_version", sa.Integer(), nullable=True),
        sa.Column("sealed_text", sa.LargeBinary(), nullable=True),
        sa.Column("cut", sa.Boolean(), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
        sa.Column("receive_time", Moment(), nullable=True),
        sa.ForeignKeyConstraint(
            ["job"], ["job.uid"], name=op.f("fk_job_log_job_job"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job", "node", name=op.f("pk_job_log")),
    )
