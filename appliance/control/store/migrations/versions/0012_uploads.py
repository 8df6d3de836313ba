"""What is on its way in part by part gets rows."""

import sqlalchemy as sa
from alembic import op

from appliance.control.store.types import Moment

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "upload",
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("artifact", sa.Text(), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("creator", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("version_name", sa.Text(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("parts", sa.BigInteger(), nullable=False),
        sa.Column("documents", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
        sa.Column("expire_time", Moment(), nullable=False),
        sa.Column("grant_id", sa.Text(), nullable=True),
        sa.Column("grant_digest", sa.LargeBinary(), nullable=True),
        sa.Column("grant_session", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("uid", name="pk_upload"),
        sa.ForeignKeyConstraint(["project"], ["project.id"], name="fk_upload_project_project"),
        sa.UniqueConstraint("grant_id", name="uq_upload_grant_id"),
    )
    for column in ("project", "principal", "version"):
        op.create_index(f"ix_upload_{column}", "upload", [column])
    op.create_table(
        "upload_part",
        sa.Column("upload", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("documents", sa.BigInteger(), nullable=False),
        sa.Column("file", sa.Text(), nullable=False),
        sa.Column("plain_size", sa.BigInteger(), nullable=False),
        sa.Column("sealed_size", sa.BigInteger(), nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("upload", "number", name="pk_upload_part"),
        sa.ForeignKeyConstraint(
            ["upload"], ["upload.uid"], name="fk_upload_part_upload_upload", ondelete="CASCADE"
        ),
    )
