"""Create everything."""

import sqlalchemy as sa
from alembic import op

from appliance.control.store.types import Moment

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "attempt",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("next_time", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("account", name=op.f("pk_attempt")),
    )
    op.create_table(
        "binding",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("creator", sa.Text(), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_binding")),
        sa.UniqueConstraint("subject", "role", "domain", name=op.f("uq_binding_subject")),
    )
    op.create_index(op.f("ix_binding_domain"), "binding", ["domain"], unique=False)

    op.create_table(
        "gateway",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("certificate_serial", sa.Text(), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gateway")),
    )
    op.create_table(
        "join_token",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("creator", sa.Text(), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
        sa.Column("expire_time", Moment(), nullable=False),
        sa.Column("used_time", Moment(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_join_token")),
    )
    op.create_table(
        "meta",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("policy_version", sa.BigInteger(), nullable=False),
        sa.Column("audit_size", sa.BigInteger(), nullable=False),
        sa.Column("audit_root", sa.LargeBinary(), nullable=True),
        sa.Column("create_time", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_meta")),
    )
    op.create_table(
        "node",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("certificate_generation", sa.Integer(), nullable=False),
        sa.Column("certificate_serial", sa.Text(), nullable=False),
        sa.Column("previous_serial", sa.Text(), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
        sa.Column("seen_time", Moment(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node")),
    )
    op.create_table(
        "project",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_project")),
    )
    op.create_table(
        "request",
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("payload_digest", sa.LargeBinary(), nullable=False),
        sa.Column("response", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("principal", "method", "request_id", name=op.f("pk_request")),
    )
    op.create_index("ix_request_create_time", "request", ["create_time"], unique=False)

    op.create_table(
        "user",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("locked", sa.Boolean(), server_default=sa.text("0"), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user")),
    )
    op.create_table(
        "artifact",
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("creator", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=True),
        sa.Column("create_time", Moment(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project"], ["project.id"], name=op.f("fk_artifact_project_project")
        ),
        sa.PrimaryKeyConstraint("project", "kind", "id", name=op.f("pk_artifact")),
    )
    op.create_table(
        "job",
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("placement", sa.JSON(), nullable=False),
        sa.Column("progress", sa.JSON(), nullable=False),
        sa.Column("restarts", sa.Integer(), nullable=False),
        sa.Column("outputs", sa.JSON(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=False),
        sa.Column("checkpoint_step", sa.BigInteger(), nullable=False),
        sa.Column("checkpoint_digest", sa.Text(), nullable=False),
        sa.Column("creator", sa.Text(), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
        sa.Column("start_time", Moment(), nullable=True),
        sa.Column("end_time", Moment(), nullable=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["project"], ["project.id"], name=op.f("fk_job_project_project")),
        sa.PrimaryKeyConstraint("uid", name=op.f("pk_job")),
        sa.UniqueConstraint("project", "id", name=op.f("uq_job_project")),
    )
    op.create_index(op.f("ix_job_state"), "job", ["state"], unique=False)

    op.create_table(
        "project_key",
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("wrapped_key", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project"], ["project.id"], name=op.f("fk_project_key_project_project")
        ),
        sa.PrimaryKeyConstraint("project", "version", name=op.f("pk_project_key")),
    )
    op.create_table(
        "recovery_code",
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user"], ["user.id"], name=op.f("fk_recovery_code_user_user"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user", "digest", name=op.f("pk_recovery_code")),
    )
    op.create_table(
        "service_account",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("locked", sa.Boolean(), server_default=sa.text("0"), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project"], ["project.id"], name=op.f("fk_service_account_project_project")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_service_account")),
    )
    op.create_index(
        op.f("ix_service_account_project"), "service_account", ["project"], unique=False
    )

    op.create_table(
        "session",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
        sa.Column("expire_time", Moment(), nullable=False),
        sa.Column("seen_time", Moment(), nullable=False),
        sa.Column("mfa_time", Moment(), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user"], ["user.id"], name=op.f("fk_session_user_user"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_session")),
    )
    op.create_index("ix_session_expire_time", "session", ["expire_time"], unique=False)
    op.create_index(op.f("ix_session_user"), "session", ["user"], unique=False)

    op.create_table(
        "totp",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("sealed_secret", sa.LargeBinary(), nullable=False),
        sa.Column("confirmed", sa.Boolean(), nullable=False),
        sa.Column("last_timecode", sa.BigInteger(), nullable=True),
        sa.Column("create_time", Moment(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user"], ["user.id"], name=op.f("fk_totp_user_user"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_totp")),
        sa.UniqueConstraint("user", name=op.f("uq_totp_user")),
    )
    op.create_table(
        "artifact_version",
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("artifact", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("key_version", sa.Integer(), nullable=False),
        sa.Column("wrapped_key", sa.LargeBinary(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("manifest_digest", sa.Text(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("creator", sa.Text(), nullable=False),
        sa.Column("job", sa.Text(), nullable=True),
        sa.Column("inputs", sa.JSON(), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
        sa.Column("complete_time", Moment(), nullable=True),
        sa.ForeignKeyConstraint(
            ["project", "key_version"],
            ["project_key.project", "project_key.version"],
            name=op.f("fk_artifact_version_project_project_key"),
        ),
        sa.ForeignKeyConstraint(
            ["project", "kind", "artifact"],
            ["artifact.project", "artifact.kind", "artifact.id"],
            name=op.f("fk_artifact_version_project_artifact"),
        ),
        sa.PrimaryKeyConstraint("uid", name=op.f("pk_artifact_version")),
        sa.UniqueConstraint(
            "project", "kind", "artifact", "number", name=op.f("uq_artifact_version_project")
        ),
    )
    op.create_index(op.f("ix_artifact_version_job"), "artifact_version", ["job"], unique=False)

    op.create_table(
        "job_metric",
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("values", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job"], ["job.uid"], name=op.f("fk_job_metric_job_job"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job", "epoch", "step", name=op.f("pk_job_metric")),
    )
    op.create_table(
        "token",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("service_account", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
        sa.Column("expire_time", Moment(), nullable=False),
        sa.ForeignKeyConstraint(
            ["service_account"],
            ["service_account.id"],
            name=op.f("fk_token_service_account_service_account"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_token")),
    )
    op.create_index(op.f("ix_token_service_account"), "token", ["service_account"], unique=False)

    op.create_table(
        "endpoint",
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("replicas", sa.Integer(), nullable=False),
        sa.Column("tensor_parallel", sa.Integer(), nullable=False),
        sa.Column("max_sequence_length", sa.Integer(), nullable=False),
        sa.Column("cache_bytes", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("creator", sa.Text(), nullable=False),
        sa.Column("create_time", Moment(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_version"],
            ["artifact_version.uid"],
            name=op.f("fk_endpoint_model_version_artifact_version"),
        ),
        sa.ForeignKeyConstraint(
            ["project"], ["project.id"], name=op.f("fk_endpoint_project_project")
        ),
        sa.PrimaryKeyConstraint("uid", name=op.f("pk_endpoint")),
        sa.UniqueConstraint("project", "id", name=op.f("uq_endpoint_project")),
    )
    op.create_table(
        "replica",
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("placement", sa.JSON(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("restarts", sa.Integer(), nullable=False),
        sa.Column("certificate_serial", sa.Text(), nullable=False),
        sa.Column("start_time", Moment(), nullable=True),
        sa.Column("ready_time", Moment(), nullable=True),
        sa.ForeignKeyConstraint(
            ["endpoint"],
            ["endpoint.uid"],
            name=op.f("fk_replica_endpoint_endpoint"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["node"], ["node.id"], name=op.f("fk_replica_node_node")),
        sa.PrimaryKeyConstraint("endpoint", "id", name=op.f("pk_replica")),
    )
    op.create_index(op.f("ix_replica_node"), "replica", ["node"], unique=False)
