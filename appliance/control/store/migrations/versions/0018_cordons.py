"""A node can be cordoned and drained: those that are there are not."""

import sqlalchemy as sa
from alembic import op

from appliance.control.store.types import Moment

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    for name in ("cordoned", "draining"):
        op.add_column(
            "node", sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false())
        )
    for name in ("cordon_reason", "cordoned_by"):
        op.add_column(
            "node", sa.Column(name, sa.Text(), nullable=False, server_default=sa.text("''"))
        )
    op.add_column("node", sa.Column("cordon_time", Moment(), nullable=True))
    op.add_column(
        "node",
        sa.Column("drain_grace_seconds", sa.Integer(), nullable=False, server_default=sa.text("0")),
    )
