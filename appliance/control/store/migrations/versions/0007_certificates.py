"""Gateways renew as nodes do; join tokens are for nodes or gateways; ends of certificates."""

import sqlalchemy as sa
from alembic import op

from appliance.control.store.types import Moment

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; a gateway's certificate of before goes on as its identity."""
    op.add_column("node", sa.Column("certificate_expire_time", Moment(), nullable=True))
    for column in (
        sa.Column("hosts", sa.JSON(), nullable=False, server_default=sa.text("'[]'")),
        sa.Column(
            "certificate_generation", sa.Integer(), nullable=False, server_default=sa.text("1")
        ),
        sa.Column("previous_serial", sa.Text(), nullable=False, server_default=sa.text("''")),
        sa.Column("certificate_used", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("certificate_expire_time", Moment(), nullable=True),
        sa.Column("front_expire_time", Moment(), nullable=True),
    ):
        op.add_column("gateway", column)
    op.execute("ALTER TABLE join_token RENAME COLUMN node TO machine")
    for column in (
        sa.Column("kind", sa.Text(), nullable=False, server_default=sa.text("'node'")),
        sa.Column("hosts", sa.JSON(), nullable=False, server_default=sa.text("'[]'")),
    ):
        op.add_column("join_token", column)
