"""Alembic's entry: run the revisions on the connection that `migrate.upgrade` hands over."""

from alembic import context

from appliance.control.store import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
