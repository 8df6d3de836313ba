"""One rank: a forked process that joins its gang, runs the kind, and says how it went.

Rules kept here:
* a rank that has paused, after a checkpoint, ends as one that is done: together with the others;
* a rank writes into a pipe of its own, if it was given one, so that it is known who wrote a line;
* a rank dies with its leader, and at once on SIGTERM: it holds nothing that a checkpoint does not;
* an ApplianceError is final: one error line, no restart, because bad input does not get better;
  so is what `crashes.final` knows. Whatever else goes wrong counts as a crash, and the gang starts
  again;
* the first rank of a node that crashes writes its trace into the log, the others a line;
* a collective that waits for a dead rank fails at once when the connection breaks. It may wait for
  a live one as long as that works; who has hung is for the leader to decide (`watching`).

Called by torch's elastic agent in the leader, after fork; keys are in memory that was inherited.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import distributed

from appliance.core.errors import ApplianceError, Internal, Paused
from appliance.core.process import die_with_parent
from appliance.jobs.runtime.context import CHECKPOINTS, Context
from appliance.jobs.runtime.crashes import Crashes, crash, final
from appliance.jobs.runtime.flags import Flags
from appliance.jobs.runtime.gather import gather
from appliance.jobs.runtime.interfaces import use_interface_to
from appliance.jobs.runtime.kinds import Run
from appliance.jobs.runtime.orders import CUDA, JobOrders
from appliance.jobs.runtime.rendezvous import FixedRendezvous, rank_store
from appliance.jobs.runtime.reporter import Reporter
from appliance.jobs.runtime.signs import in_collective
from appliance.jobs.runtime.watching import CRASHED, PEER_LOST, GangWatch

COLLECTIVE_TIME = dt.timedelta(days=7)
"""Longer than ranks are ever apart: torch must not decide before the leader does."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gang:
    """What the leader hands to every rank it forks."""

    orders: JobOrders = field(repr=False)
    run: Run
    reports: int
    outputs: Sequence[int]
    scratch: Path
    flags: Flags
    rendezvous: FixedRendezvous
    watch: GangWatch
    leader: int
    crashes: Crashes


def run_rank(gang: Gang) -> None:
    """Entry point of a forked rank. Returns when all is done; ends the process otherwise."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(gang.leader)
    local_rank = int(os.environ["LOCAL_RANK"])
    _write_to(gang.outputs, local_rank)
    report = Reporter(gang.reports, gang.orders.rank_base + local_rank)
    try:
        _work(gang, report, local_rank)
    except BaseException as error:  # noqa: BLE001  # torch's checkpoint errors are no Exception
        _end_by(error, gang, report, local_rank)


def _write_to(outputs: Sequence[int], local_rank: int) -> None:
    """Let what this rank writes go into its own pipe, whoever in the process writes it."""
    if outputs:
        for standard in (1, 2):
            os.dup2(outputs[local_rank], standard)
        for descriptor in outputs:
            os.close(descriptor)


def _work(gang: Gang, report: Reporter, local_rank: int) -> None:
    orders = gang.orders
    rank = orders.rank_base + local_rank
    if int(os.environ["RANK"]) != rank or int(os.environ["WORLD_SIZE"]) != orders.world_size:
        raise Internal("the nodes of the job disagree about its ranks; start the job again")
    life = gang.watch.signs.life(local_rank)
    life.begin()
    life.mark("meets the other ranks")
    device = _device(orders, local_rank)
    if orders.world_size > 1:
        _join(gang, rank)
    context = Context(
        orders=orders,
        rank=rank,
        local_rank=local_rank,
        device=device,
        report=report,
        scratch=gang.scratch,
        stopping=lambda: gang.flags.stopping,
        saving=lambda: gang.flags.saving,
        life=life,
    )
    logger.info("rank %s of %s works on %s", rank, orders.world_size, device)
    _announce(context, gang.rendezvous.round, gang.watch.before)
    try:
        gang.run(context)
    except Paused as pause:
        gang.flags.pause(int(pause.metadata["step"]))
    # All end together: one that is done early would look dead to the others.
    gather(None)
    if distributed.is_initialized():
        distributed.destroy_process_group()
    life.end()


def _announce(context: Context, number: int, why: str) -> None:
    if number == 1:
        context.report.event("started")
    elif context.rank == 0:
        kept = CHECKPOINTS in context.orders.outputs
        step = context.checkpoints().newest_step() if kept else 0
        sentence = f"the ranks were started again at step {step}, because {why}"
        context.report.event("rank_restart", sentence, restarts=number - 1, resumed_at_step=step)


def _device(orders: JobOrders, local_rank: int) -> torch.device:
    if orders.device_kind != CUDA:
        return torch.device("cpu")
    device = torch.device("cuda", orders.devices[local_rank])
    torch.cuda.set_device(device)
    return device


def _join(gang: Gang, rank: int) -> None:
    """Set up the process group over this round's store, on the interface the nodes meet on."""
    orders, meeting = gang.orders, gang.rendezvous
    use_interface_to(meeting.host)
    backend = "cpu:gloo,cuda:nccl" if orders.device_kind == CUDA else "gloo"
    distributed.init_process_group(
        backend,
        store=rank_store(meeting.host, meeting.port, meeting.get_run_id(), meeting.round),
        rank=rank,
        world_size=orders.world_size,
        timeout=COLLECTIVE_TIME,
    )


def _end_by(error: BaseException, gang: Gang, report: Reporter, local_rank: int) -> None:
    """End the process after an exception: for good, or for the gang to start again."""
    number, rank = gang.rendezvous.round, gang.orders.rank_base + local_rank
    cause = gang.crashes.first(number)
    gang.crashes.note(local_rank, number, crash(error))
    known = error if isinstance(error, ApplianceError) else final(error, rank)
    if cause is not None and known is None:
        # It misses one that is gone. A line: the cause must be among the last lines of the log.
        first = gang.orders.rank_base + cause[0]
        logger.error("rank %s ended after rank %s: %s", rank, first, type(error).__name__)
    elif not isinstance(error, ApplianceError):
        logger.error("rank %s crashed", rank, exc_info=error)
    if known is not None and gang.flags.forbid_restart():
        logger.warning("the job cannot go on: %s", known.message)
        report.error(known.reason, known.message)
    _leave(PEER_LOST if in_collective(error.__traceback__) else CRASHED)


def _leave(code: int = CRASHED) -> None:
    """End without clean-up, which would wait for other ranks."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
