"""What happens to jobs is kept, and of deleted jobs that they were."""

import sqlalchemy as sa
from alembic import op

from appliance.control.store.types import Moment

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables. Of jobs that there are the history begins now."""
    op.create_table(
        "job_event",
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("shares", sa.JSON(), nullable=False),
        sa.Column("checkpoint_step", sa.BigInteger(), nullable=False),
        sa.Column("outputs", sa.JSON(), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job"], ["job.uid"], name="fk_job_event_job_job", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job", "number", name="pk_job_event"),
    )
    op.create_table(
        "deleted_job",
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("delete_time", Moment(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project"], ["project.id"], name="fk_deleted_job_project_project", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("uid", name="pk_deleted_job"),
    )
