"""The kind `train`: trains a Llama-style model on prepared tokens and makes a model version.

Reads the dataset version of the spec; makes the output `model` and keeps checkpoints. Started by
the runtime once per rank.
"""

from __future__ import annotations

from functools import partial

from appliance.jobs.runtime.context import Context
from appliance.jobs.train import export
from appliance.jobs.train.loop import Loop
from appliance.jobs.train.model import llama_config
from appliance.jobs.train.recipe import build_training_state
from appliance.jobs.train.tokens import Batches, TokenIndex, TokenStream
from appliance.kinds.train_settings import TrainSettings


def run(context: Context) -> None:
    """Train, or go on training from the newest checkpoint, then write the model.

    Raises:
        InvalidInput: the spec, the mesh and the data do not fit together.
        FailedPrecondition: the loss became NaN or infinite.
        LeaseLost: the job was told to stop.
        Paused: it was told to save a checkpoint and end, and has.
        Tampered: an input or a checkpoint is not what was written.
    """
    settings = TrainSettings.from_spec(context.spec)
    settings.check(context.world_size)
    dataset, name = context.input(context.spec.dataset), context.spec.from_checkpoint
    index = TokenIndex.read(dataset)
    config = llama_config(settings.shape, index.vocabulary_size, index.end_of_text)
    settings.check(context.world_size, config.vocab_size)
    context.mark("makes its part of the model")
    with TokenStream(dataset, index) as stream:
        batches = Batches(stream, settings.sequence_length, settings.batch_size, settings.seed)
        assembly = build_training_state(
            settings, config, context.rank, context.device, context.mark
        )
        loop = Loop(
            assembly=assembly,
            batches=batches,
            rank=context.rank,
            report=context.report,
            checkpoints=context.checkpoints(),
            beginning=partial(context.input, name) if name else None,
            fence=context.fence,
            saving=context.saving,
            mark=context.mark,
        )
        result = loop.run()
    context.mark("writes the model")
    writer = context.output("model")
    parameters = export.write(assembly, context.rank, dataset, writer)
    writer.finish_together(context.rank, {"parameters": parameters})
    context.report.result(result)
