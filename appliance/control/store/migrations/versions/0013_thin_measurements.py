"""The measurements of jobs, of which each step was kept, are thinned as new ones are."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

MOST = 2048
ONCE = """
DELETE FROM job_metric WHERE rowid IN (SELECT rowid FROM
    (SELECT rowid, row_number() OVER (PARTITION BY step ORDER BY epoch DESC) AS place
        FROM job_metric WHERE job = :job)
    WHERE place > 1)
"""
SECTIONS = "SELECT count(DISTINCT step >> :power) FROM job_metric WHERE job = :job"
THIN = """
DELETE FROM job_metric WHERE rowid IN (SELECT rowid FROM
    (SELECT rowid, row_number() OVER (PARTITION BY step >> :power ORDER BY step) AS place
        FROM job_metric WHERE job = :job)
    WHERE place > 1)
    AND step != (SELECT max(step) FROM job_metric WHERE job = :job)
"""


def upgrade() -> None:
    """Keep each step once; of jobs with more the first of each section, and the last of all."""
    connection = op.get_bind()
    jobs = "SELECT job, count(DISTINCT step) AS steps FROM job_metric GROUP BY job"
    for job, steps in connection.execute(sa.text(jobs)).all():
        connection.execute(sa.text(ONCE), {"job": job})
        if steps <= MOST:
            continue
        power = 0
        while _sections(connection, job, power) + 1 > MOST:
            power += 1
        connection.execute(sa.text(THIN), {"job": job, "power": power})


def _sections(connection: sa.Connection, job: str, power: int) -> int:
    """How many sections of two to this power steps have measurements."""
    found = connection.execute(sa.text(SECTIONS), {"job": job, "power": power}).scalar_one()
    return int(found)
