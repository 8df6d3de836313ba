"""One file per parallelism; `appliance.jobs.train.recipe` applies them in order."""
