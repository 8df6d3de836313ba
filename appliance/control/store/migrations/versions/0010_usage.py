"""What gateways have reported is known by number."""

import sqlalchemy as sa
from alembic import op

from appliance.control.store.types import Moment

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; what is in the log so far has no numbers."""
    op.create_table(
        "usage_boot",
        sa.Column("gateway", sa.Text(), nullable=False),
        sa.Column("boot", sa.Text(), nullable=False),
        sa.Column("recorded", sa.JSON(), nullable=False),
        sa.Column("closed", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("time", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("gateway", "boot", name="pk_usage_boot"),
    )
    op.add_column(
        "meta", sa.Column("usage_noted", sa.BigInteger(), nullable=False, server_default="0")
    )
    op.execute(sa.text("UPDATE meta SET usage_noted = audit_size"))
