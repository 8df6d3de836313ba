"""From the command line to the leader: what has to happen before torch is loaded and keys are read.

Rules kept here:
* nothing secret is in the arguments; orders and reports are inherited pipes, of which no child
  program gets the orders;
* the process closes itself to others before it reads the orders;
* `OMP_NUM_THREADS` is set before torch is imported: libgomp reads it once;
* a node without torch says so.

Called by `python -m appliance.jobs`, with another table of kinds by tests.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping, Sequence

from appliance.core import log
from appliance.core.needs import unimportable
from appliance.core.process import die_with_parent, harden, prefer_as_victim
from appliance.jobs.runtime.reporter import Reporter

logger = logging.getLogger(__name__)


def start(arguments: Sequence[str], kinds: Mapping[str, str]) -> int:
    """Run this node's part of a job; returns the exit code: 0 when all of it is done.

    Args:
        arguments: `--work`, `--epoch` (both to tell processes apart in `ps`), `--orders-fd`,
            `--reports-fd`.
        kinds: kind of job -> `module:function`.
    """
    parser = argparse.ArgumentParser(prog="appliance.jobs")
    parser.add_argument("--work", required=True)
    parser.add_argument("--epoch", required=True, type=int)
    parser.add_argument("--orders-fd", required=True, type=int)
    parser.add_argument("--reports-fd", required=True, type=int)
    parser.add_argument("--rank-outputs", default=(), type=_descriptors)
    options = parser.parse_args(arguments)
    log.configure("job")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    prefer_as_victim()
    harden()
    die_with_parent(os.getppid())
    for descriptor in (options.reports_fd, *options.rank_outputs):
        os.set_inheritable(descriptor, False)
    with os.fdopen(options.orders_fd, "rb") as pipe:
        document = pipe.read()
    try:
        # Only now: importing torch reads the environment, and takes seconds.
        from appliance.jobs.runtime.leader import lead  # noqa: PLC0415
    except (ImportError, OSError) as error:
        logger.exception("the leader cannot be loaded")
        failure = unimportable(error)
        Reporter(options.reports_fd, rank=0).error(failure.reason, failure.message)
        return 1
    return lead(document, options.reports_fd, kinds, options.rank_outputs)


def _descriptors(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))
