"""Say of the newest checkpoint of a job which epoch saved it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. Checkpoints of before have no folder for each epoch, which 0 says."""
    op.add_column(
        "job", sa.Column("checkpoint_epoch", sa.BigInteger(), nullable=False, server_default="0")
    )
