"""What was deleted leaves a tombstone and no key, and what is read is bound by uid."""

import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

from appliance.control.store.types import Moment

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

PAD = b"." * 4096
"""As `services.common.keys` writes it."""


def upgrade() -> None:
    """Give keys a table of their own, make room for tombstones, bind what jobs and versions read.

    The start that follows writes the file anew, since what earlier versions freed still holds keys.
    """
    connection = op.get_bind()
    _make_tables()
    _move_keys(connection)
    _bind(connection)


def _make_tables() -> None:
    op.create_table(
        "version_key",
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("wrapped_key", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["version"],
            ["artifact_version.uid"],
            name="fk_version_key_version_artifact_version",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("version", name="pk_version_key"),
    )
    op.create_table(
        "tombstone",
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("manifest_digest", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("statement", sa.Text(), nullable=False),
        sa.Column("inputs", sa.JSON(), nullable=False),
        sa.Column("input_uids", sa.JSON(), nullable=False),
        sa.Column("job", sa.Text(), nullable=True),
        sa.Column("job_name", sa.Text(), nullable=False),
        sa.Column("creator", sa.Text(), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
        sa.Column("delete_time", Moment(), nullable=False),
        sa.Column("deleter", sa.Text(), nullable=False),
        sa.Column("erase_time", Moment(), nullable=True),
        sa.Column("purge_time", Moment(), nullable=True),
        sa.ForeignKeyConstraint(
            ["project"], ["project.id"], name="fk_tombstone_project_project", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("uid", name="pk_tombstone"),
    )
    op.create_index("ix_tombstone_project", "tombstone", ["project", "delete_time"])
    number = sa.Column("deleted_number", sa.Integer(), nullable=False, server_default=sa.text("0"))
    op.add_column("artifact", number)
    uids = sa.Column("input_uids", sa.JSON(), nullable=False, server_default=sa.text("'[]'"))
    op.add_column("artifact_version", uids)
    inputs = sa.Column("inputs", sa.JSON(), nullable=False, server_default=sa.text("'{}'"))
    op.add_column("job", inputs)


def _move_keys(connection: sa.Connection) -> None:
    """Keys of versions go into their own table, and all of them are written as they are now."""
    keys = connection.execute(sa.text("SELECT uid, wrapped_key FROM artifact_version")).all()
    for uid, key in keys:
        connection.execute(
            sa.text("INSERT INTO version_key VALUES (:uid, :key)"), {"uid": uid, "key": PAD + key}
        )
    rows = "SELECT project, version, wrapped_key FROM project_key"
    for project, version, key in connection.execute(sa.text(rows)).all():
        connection.execute(
            sa.text(
                "UPDATE project_key SET wrapped_key = :key"
                " WHERE project = :project AND version = :version"
            ),
            {"project": project, "version": version, "key": PAD + key},
        )
    op.drop_column("artifact_version", "wrapped_key")


def _bind(connection: sa.Connection) -> None:
    """Say by uid what jobs read and what versions were made from; no name was used twice before."""
    uids = dict(_uids(connection))
    jobs = connection.execute(sa.text("SELECT uid, spec FROM job")).all()
    for uid, spec in jobs:
        bound = {text: uids[text] for text in _texts(json.loads(spec)) if text in uids}
        connection.execute(
            sa.text("UPDATE job SET inputs = :inputs WHERE uid = :uid"),
            {"inputs": json.dumps(bound), "uid": uid},
        )
    versions = connection.execute(sa.text("SELECT uid, inputs FROM artifact_version")).all()
    for uid, inputs in versions:
        found = [uids.get(name, "") for name in json.loads(inputs)]
        connection.execute(
            sa.text("UPDATE artifact_version SET input_uids = :uids WHERE uid = :uid"),
            {"uids": json.dumps(found), "uid": uid},
        )


def _uids(connection: sa.Connection) -> Iterator[tuple[str, str]]:
    """The name of everything that a job can read, and what it names."""
    versions = "SELECT uid, project, kind, artifact, number FROM artifact_version"
    for uid, project, kind, artifact, number in connection.execute(sa.text(versions)):
        if kind in {"dataset", "model"}:
            yield f"projects/{project}/{kind}s/{artifact}/versions/{number}", uid
    checkpoints = (
        "SELECT job.uid, job.project, job.id, checkpoint.epoch, checkpoint.step"
        " FROM checkpoint JOIN job ON job.uid = checkpoint.job"
    )
    for uid, project, job, epoch, step in connection.execute(sa.text(checkpoints)):
        point = f"e{epoch}-step-{step}"
        yield f"projects/{project}/jobs/{job}/checkpoints/{point}", f"{uid}/{point}"


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401  # JSON
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)
