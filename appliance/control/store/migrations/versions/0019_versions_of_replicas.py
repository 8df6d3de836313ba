"""An endpoint can be changed and stopped, and each replica says what it was started with."""

import sqlalchemy as sa
from alembic import op

from appliance.control.store.types import Moment

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; replicas that are there are what their endpoint is."""
    for column in (
        sa.Column("goal", sa.Text(), nullable=False, server_default=sa.text("'RUNNING'")),
        sa.Column("generation", sa.BigInteger(), nullable=False, server_default=sa.text("1")),
        sa.Column("next_replica", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("allow_downtime", sa.Boolean(), nullable=False, server_default=sa.false()),
    ):
        op.add_column("endpoint", column)
    for column in (
        sa.Column("state_time", Moment(), nullable=True),
        sa.Column("generation", sa.BigInteger(), nullable=False, server_default=sa.text("1")),
        sa.Column("tensor_parallel", sa.Integer(), nullable=False, server_default=sa.text("1")),
        sa.Column("max_sequence_length", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("cache_bytes", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
    ):
        op.add_column("replica", column)
    # SQLite adds a reference with the column, or not at all.
    op.execute(
        "ALTER TABLE replica ADD COLUMN model_version TEXT"
        " CONSTRAINT fk_replica_model_version_artifact_version REFERENCES artifact_version (uid)"
    )
    columns = ("model_version", "tensor_parallel", "max_sequence_length", "cache_bytes")
    replica, endpoint = (
        sa.table(name, *map(sa.column, columns), sa.column(key))
        for name, key in (("replica", "endpoint"), ("endpoint", "uid"))
    )
    values = {
        column: sa.select(endpoint.c[column])
        .where(endpoint.c.uid == replica.c.endpoint)
        .scalar_subquery()
        for column in columns
    }
    op.execute(replica.update().values(values))
    # Ids were 0 to one less than there are replicas.
    op.execute("UPDATE endpoint SET next_replica = replicas")
    op.execute("UPDATE endpoint SET goal = 'DELETED' WHERE state = 'STOPPING'")
