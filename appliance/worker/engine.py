"""One vLLM engine: started, asked for answers, asked how it is.

Rules kept here:
* the engine and its ranks are forked from this process, which has imported everything they need:
  they start in seconds, and inherit what must not be written down;
* nothing of the engine waits for a request of its own: outputs of a step reach the sinks of their
  requests in one turn of the event loop, without a task for each;
* the engine counts as hanging or not by its steps, each of which it reports, tokens or none.

The only user of vLLM's `AsyncLLM` (0.32). Constructed by `appliance.worker.main`; called by the
service.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.device_communicators import shm_broadcast
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs.engine import tokens_input
from vllm.model_executor.models.registry import ModelRegistry
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import StatLoggerBase

from appliance.core.errors import Unavailable
from appliance.worker.admission import Admitted
from appliance.worker.loader import LOAD_FORMAT, register
from appliance.worker.mask import MISSING, TokensOnly
from appliance.worker.outputs import LENGTH, STOP, EngineActivity, Output
from appliance.worker.requests import EngineLimits, EngineRequest
from appliance.worker.vocabulary import Ranges

MAX_RUNNING = 128
"""Answers in one step; more wait."""
LOOK_AGAIN_SECONDS = 50e-6
"""Between two looks of a waiting rank; a step of the smallest model takes dozens of them."""


@dataclass(frozen=True)
class EngineSettings:
    """How to start an engine.

    Attributes:
        folder: holds the checked `config.json` and nothing else.
        model: what it says.
        tensor_parallel: ranks.
        sequence_length: most tokens of a prompt and its answer.
        cache_bytes: of the key-value cache, of all ranks together.
        missing: token ids that the model has rows for and the tokenizer does not have.
    """

    folder: Path
    model: Admitted
    tensor_parallel: int
    sequence_length: int
    cache_bytes: int
    missing: Ranges


class _StepLogger(StatLoggerBase):  # type: ignore[misc]  # vLLM has no types that mypy follows
    """vLLM's own way to hear of each step."""

    def __init__(self, activity: EngineActivity) -> None:
        self._activity = activity

    def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:  # noqa: ANN401  # vLLM's own signature
        """A step ended."""
        if scheduler_stats is not None:
            waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            self._activity.note_step(scheduler_stats.num_running_reqs, waiting)

    def log_engine_initialized(self) -> None:
        """Nothing to say."""


def _allow_tiles() -> None:
    """Ask the kernel for the tile registers of Intel's AMX, for this process and its ranks.

    vLLM's attention uses them for bfloat16 on processors that have them, and leaves it to oneDNN to
    ask (arch_prctl(2), ARCH_REQ_XCOMP_PERM), which small models never reach: their ranks died of
    SIGILL at the first token. Does nothing on other processors.
    """
    torch.cpu._init_amx()  # noqa: SLF001 - it has no public name, and vLLM's code asks its sister


def _wait_asleep() -> None:
    """Let the engine and its ranks sleep between two looks for the next message.

    On a CPU, where all of a worker runs on the same cores. vLLM looks in a loop of sched_yield(2)
    for a second after each message, so never stops under load, and Linux 6.18 lets nobody else run
    for half a second at a time beside two such loops: orders, tokens and heartbeats waited so long.
    """
    shm_broadcast.sched_yield = lambda: time.sleep(LOOK_AGAIN_SECONDS)


class Engine:
    """A running engine. Construct it before the event loop and before gRPC: it forks.

    Raises whatever vLLM raises; why a rank failed is in the family's `fault`.
    """

    def __init__(self, settings: EngineSettings) -> None:
        register()
        _know_architecture(settings.model)
        self.activity = EngineActivity()
        config = _engine_args(settings).create_engine_config()
        # vLLM asks for new interpreters on CPUs; forked ranks are what this worker is built on.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        _allow_tiles()
        if current_platform.is_cpu():
            _wait_asleep()
        self._llm = AsyncLLM.from_vllm_config(
            config,
            stat_loggers=[lambda *_: _StepLogger(self.activity)],
            disable_log_stats=True,
        )
        self.limits = EngineLimits(
            sequence_length=config.model_config.max_model_len,
            vocabulary=config.model_config.get_vocab_size(),
            slots=MAX_RUNNING,
        )

    async def submit(
        self, identifier: str, request: EngineRequest, sink: Callable[[Output], None]
    ) -> None:
        """Start an answer; `sink` gets its outputs, one a step, and must not wait.

        Raises Unavailable when the engine is dead.
        """

        def put(output: RequestOutput | Exception) -> None:
            sink(_output_of(output))

        try:
            collector = await self._llm.add_request(
                identifier, tokens_input(request.prompt), _sampling_of(request)
            )
        except Exception as error:
            raise Unavailable("the engine did not take the request") from error
        # From here on the engine's outputs go straight to the sink; nothing ran since it was added.
        collector.put = put
        early = collector.get_nowait()
        if early is not None:
            put(early)

    async def abort(self, identifiers: list[str]) -> None:
        """Forget answers; their slots are free with the engine's next step."""
        await self._llm.abort(identifiers)


def _output_of(output: RequestOutput | Exception) -> Output:
    if isinstance(output, Exception):
        return Output([], failed=True)
    made = output.outputs[0]
    finish = made.finish_reason or ""
    return Output(list(made.token_ids), finish, failed=finish not in ("", STOP, LENGTH))


def _sampling_of(request: EngineRequest) -> SamplingParams:
    return SamplingParams(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        seed=request.seed,
        stop_token_ids=request.end_token_ids,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        skip_clone=True,
    )


def _engine_args(settings: EngineSettings) -> AsyncEngineArgs:
    cpu = current_platform.is_cpu()
    # Looked at by name in each rank; imported here, before the fork.
    mask = [f"{TokensOnly.__module__}:{TokensOnly.__name__}"] if settings.missing else None
    return AsyncEngineArgs(
        model=str(settings.folder),
        load_format=LOAD_FORMAT,
        skip_tokenizer_init=True,
        trust_remote_code=False,
        # The gateway decides how to choose tokens, not a file of the model.
        generation_config="vllm",
        dtype=settings.model.dtype,
        max_model_len=settings.sequence_length,
        max_num_seqs=MAX_RUNNING,
        tensor_parallel_size=settings.tensor_parallel,
        distributed_executor_backend="mp",
        kv_cache_memory_bytes=settings.cache_bytes // settings.tensor_parallel,
        worker_cls="appliance.worker.rank.BoundWorker" if cpu else "auto",
        enforce_eager=cpu,
        disable_log_stats=True,
        enable_log_requests=False,
        seed=0,
        logits_processors=mask,
        additional_config={MISSING: settings.missing} if settings.missing else {},
    )


def _know_architecture(model: Admitted) -> None:
    """Import the model's code before the fork.

    vLLM would start an interpreter to look at it, and each rank would import it again.
    """
    if current_platform.is_cpu():
        code = model.engine
        module = import_module(f"vllm.model_executor.models.{code.module}")
        ModelRegistry.register_model(model.architecture, getattr(module, code.name))
        import_module("appliance.worker.rank")
