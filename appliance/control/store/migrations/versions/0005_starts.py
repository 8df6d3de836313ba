"""Say which epoch saved a job's newest checkpoint, and when a start that failed is repeated."""

import sqlalchemy as sa
from alembic import op

from appliance.control.store.types import Moment

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. Checkpoints of before have no folder for each epoch, which 0 says."""
    op.add_column(
        "job", sa.Column("checkpoint_epoch", sa.BigInteger(), nullable=False, server_default="0")
    )
    op.add_column("job", sa.Column("failures", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("job", sa.Column("retry_time", Moment(), nullable=True))
