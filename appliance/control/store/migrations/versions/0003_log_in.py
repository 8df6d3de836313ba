"""Log-in: devices that are known, tries counted per session, passwords that must be replaced."""

import sqlalchemy as sa
from alembic import op

from appliance.control.store.types import Moment

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what is new. People, sessions and tokens that are there go on as they were."""
    op.create_table(
        "device",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
        sa.Column("expire_time", Moment(), nullable=False),
        sa.Column("seen_time", Moment(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user"], ["user.id"], name=op.f("fk_device_user_user"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device")),
    )
    op.create_index(op.f("ix_device_user"), "device", ["user"])
    op.add_column(
        "user", sa.Column("must_change", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column(
        "session", sa.Column("failures", sa.Integer(), nullable=False, server_default="0")
    )
    op.add_column("session", sa.Column("counter", sa.Text(), nullable=False, server_default=""))
    op.add_column(
        "totp", sa.Column("used_timecodes", sa.JSON(), nullable=False, server_default="[]")
    )
    op.add_column("token", sa.Column("creator", sa.Text(), nullable=False, server_default=""))
