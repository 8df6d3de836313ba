"""What a node starts for a job: one process tree per job and node, one folder per kind of job."""
