"""Tell the platform from all projects in bindings.

Until here `*` meant both. A role that administers or audits the appliance keeps both, as two rows;
any other keeps all projects, and with that no more right over the appliance itself.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_BOTH = ("administrator", "auditor")
_PLATFORM = "/platform"


def upgrade() -> None:
    """Copy each `*` binding of a platform role to the platform."""
    binding = sa.table(
        "binding",
        *(sa.column(name) for name in ("id", "subject", "role", "domain", "creator")),
        sa.column("create_time"),
    )
    column = binding.c
    copied = sa.select(
        # An id of its own that no random one (16 hexadecimal digits) can be.
        column.id + "-p",
        column.subject,
        column.role,
        sa.literal(_PLATFORM),
        column.creator,
        column.create_time,
    ).where(column.domain == "*", column.role.in_(_BOTH))
    op.execute(binding.insert().from_select(list(column.keys()), copied))
    op.execute("UPDATE meta SET policy_version = policy_version + 1")
