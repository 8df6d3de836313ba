"""One thin file per proto service: translate a request into a call of a service, nothing else."""
