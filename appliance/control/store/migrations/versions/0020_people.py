"""People and applications are described; of tokens it is known when they were last used."""

import sqlalchemy as sa
from alembic import op

from appliance.control.store.types import Moment

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. Of a token that is older than them no use is known."""
    for table in ("user", "service_account"):
        op.add_column(table, _text("description"))
    op.add_column("token", sa.Column("use_time", Moment(), nullable=True))
    op.add_column("token", _text("replaces"))


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=False, server_default=sa.text("''"))
