"""Checkpoints and work with the object store get rows, versions statements; used certificates."""

import sqlalchemy as sa
from alembic import op

from appliance.control.store.types import Moment

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables; the newest checkpoint of each job becomes a row, of unknown size."""
    op.create_table(
        "checkpoint",
        sa.Column("job", sa.Text(), sa.ForeignKey("job.uid", ondelete="CASCADE"), primary_key=True),
        sa.Column("epoch", sa.BigInteger(), primary_key=True),
        sa.Column("step", sa.BigInteger(), primary_key=True),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
    )
    op.create_table(
        "storage_task",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("due_time", Moment(), nullable=False),
        sa.Column("lock_token", sa.Text(), nullable=True),
        sa.Column("lock_expire_time", Moment(), nullable=True),
        sa.Column("create_time", Moment(), nullable=False),
    )
    op.create_index("ix_storage_task_subject", "storage_task", ["subject"])
    op.add_column(
        "artifact_version",
        sa.Column("statement", sa.Text(), nullable=False, server_default=sa.text("''")),
    )
    op.add_column(
        "node",
        sa.Column("certificate_used", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    # Those of a job that has succeeded were deleted with its end.
    op.execute(
        "INSERT INTO checkpoint (job, epoch, step, digest, size_bytes, state, create_time)"
        " SELECT uid, checkpoint_epoch, checkpoint_step, checkpoint_digest, 0, 'COMPLETE',"
        " coalesce(start_time, create_time) FROM job"
        " WHERE checkpoint_step > 0 AND EXISTS (SELECT 1 FROM artifact_version"
        " WHERE artifact_version.job = job.uid AND artifact_version.kind = 'checkpoints')"
    )
    for column in ("checkpoint_step", "checkpoint_digest", "checkpoint_epoch"):
        op.drop_column("job", column)
