"""The measurements of jobs, of which each step was kept, are thinned as new ones are."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

MOST = 2048


def upgrade() -> None:
    """Keep so many steps of each job, evenly, with the first and the last, and each once."""
    connection = op.get_bind()
    crowded = connection.execute(
        sa.text(
            "SELECT job, min(step), max(step) FROM job_metric GROUP BY job HAVING count(*) > :most"
        ),
        {"most": MOST},
    )
    for job, first, last in crowded.all():
        apart = 1
        while (last - first) // apart + 3 > MOST:
            apart *= 2
        thin = "DELETE FROM job_metric WHERE job = :job AND step % :apart != 0"
        thin += " AND step NOT IN (:first, :last)"
        ends = {"job": job, "apart": apart, "first": first, "last": last}
        connection.execute(sa.text(thin), ends)
        once = "DELETE FROM job_metric WHERE job = :job AND (step, epoch) NOT IN"
        once += " (SELECT step, max(epoch) FROM job_metric WHERE job = :job GROUP BY step)"
        connection.execute(sa.text(once), {"job": job})
