"""The model: unmodified Hugging Face Llama modules, cut into pipeline stages, seeded by name.

Rules kept here:
* names of parameters are those of `LlamaForCausalLM` in every layout, so checkpoints and exports
  need no renaming;
* a full model never exists: stages are made on the meta device and get memory for the slices of
  this rank alone;
* first weights depend on seed and name only, never on the layout: every block of rows has a
  generator of its own, and a rank makes the blocks that it holds.

Called by `appliance.jobs.train.recipe`, `checkpoint` and `export`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from appliance.jobs.train.parallel.slices import Box, Coordinate, cut_of, local, shape_of
from appliance.kinds.train_settings import DecoderShape

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
ROWS_PER_BLOCK = 1024
HEAD_PIECE = 1 << 38
"""Multiplications in a piece of the output projection: 10 s on a slow processor, twice backward."""
VOCABULARY_MULTIPLE = 64

Mark = Callable[[], None]


def padded_vocabulary(size: int) -> int:
    """Entries of the embedding for a tokenizer of `size` entries.

    A multiple of 64, so that tensor degrees divide it and matrix units like it. It does not depend
    on the layout, because the padding takes part in the loss.
    """
    return -(-size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def llama_config(shape: DecoderShape, vocabulary_size: int, end_of_text: int) -> LlamaConfig:
    """The Hugging Face configuration of an architecture.

    Args:
        shape: the architecture.
        vocabulary_size: entries of the tokenizer; the embedding gets a few more (padding).
        end_of_text: id of the token that ends a document.
    """
    config = LlamaConfig(
        vocab_size=padded_vocabulary(vocabulary_size),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.attention_heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=shape.context_length,
        tie_word_embeddings=shape.tie_embeddings,
        bos_token_id=None,
        eos_token_id=end_of_text,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    config.architectures = ["LlamaForCausalLM"]
    return config


def parameter_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Global shape of every parameter by name; a tied output projection is not one of its own."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


class Stage(nn.Module):
    """The part of a Llama that one pipeline stage computes.

    It has the modules `model` and `lm_head` like `LlamaForCausalLM`, without what other stages
    hold. The first stage takes token ids (rows, tokens); the others take hidden states (rows,
    tokens, width). The last gives logits (rows, tokens, vocabulary), the others hidden states.

    Args:
        config: of the whole model.
        layers: which decoder layers are here.
        first: whether the input embedding is here.
        last: whether the final norm and the output projection are here.
        mark: called when a layer or a piece of the output projection is done, forward and backward,
            and when a parameter is seeded.
    """

    def __init__(
        self,
        config: LlamaConfig,
        layers: range,
        *,
        first: bool,
        last: bool,
        mark: Mark | None = None,
    ) -> None:
        super().__init__()
        self._mark = mark
        whole = LlamaForCausalLM(config)
        base = whole.model
        self.layers = layers
        self.first = first
        self.last = last
        for index in range(config.num_hidden_layers):
            if index not in layers:
                base.layers[index] = nn.Identity()
        if not first:
            base.embed_tokens = None
        if not last:
            base.norm = nn.Identity()
        self.model = base
        self.lm_head: nn.Module | None = whole.lm_head if last else None
        # Before layers are cut over ranks: what counts is one against the other.
        self._head_size = int(config.vocab_size * config.hidden_size)
        self._layer_size = _layer_size(config)
        self.tied_here = bool(config.tie_word_embeddings and first and last)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Compute this stage; attention is causal."""
        hidden = self.model.embed_tokens(inputs) if self.first else inputs
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rotary = self.model.rotary_emb(hidden, position_ids=positions)
        for index in self.layers:
            hidden = self.model.layers[index](
                hidden, attention_mask=None, position_embeddings=rotary, position_ids=positions
            )
            self._watch(hidden)
        if self.lm_head is None:
            return hidden
        return self._logits(self.lm_head, self.model.norm(hidden))

    def _logits(self, head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """The output projection, in pieces that are each marked when a vocabulary makes it long."""
        pieces = []
        for piece in hidden.chunk(self.head_pieces(hidden.shape[0] * hidden.shape[1]), dim=1):
            # The loss wants float32.
            pieces.append(head(piece).to(torch.float32))
            self._watch(pieces[-1])
        # A copy also of a single one: tensor parallel gives a view, and an in-place operation on a
        # view would lose the hooks that FSDP puts on what a stage returns.
        logits = torch.cat(pieces, dim=1)
        self._watch(logits)
        return logits

    def head_pieces(self, tokens: int) -> int:
        """Pieces of the output projection of so many tokens.

        As many as keep each below `HEAD_PIECE`, but no more than layers of the same size.

        Every piece reads the weights again, so a device for which a layer is nothing cuts little.
        """
        work = -(-tokens * self._head_size // HEAD_PIECE)
        layers = -(-self._head_size // self._layer_size)
        return min(work, layers)

    def done(self) -> None:
        """A piece of this stage's work is done."""
        if self._mark is not None:
            self._mark()

    def _watch(self, hidden: torch.Tensor) -> None:
        """Mark the end of a piece now, and the beginning of its backward pass when that comes."""
        self.done()
        if hidden.requires_grad:
            hidden.register_hook(lambda _: self.done())

    def tie(self) -> None:
        """Make the output projection the embedding again, after parameters were replaced."""
        if self.tied_here and self.lm_head is not None:
            self.lm_head.weight = self.model.embed_tokens.weight

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """Every parameter of the stage once, by its name in `LlamaForCausalLM`."""
        return dict(self.named_parameters())


def _layer_size(config: LlamaConfig) -> int:
    """Entries of the matrices of one layer."""
    heads = config.num_attention_heads + config.num_key_value_heads
    attention = 2 * config.hidden_size**2 * heads // config.num_attention_heads
    return int(attention + 3 * config.hidden_size * config.intermediate_size)


def meta_stage(
    config: LlamaConfig, layers: range, *, first: bool, last: bool, mark: Mark | None = None
) -> Stage:
    """A stage without memory."""
    with torch.device("meta"):
        return Stage(config, layers, first=first, last=last, mark=mark)


def allocate(stage: Stage, config: LlamaConfig, device: torch.device) -> None:
    """Give a stage memory on a device for what this rank holds; values are undefined."""
    stage.to_empty(device=device)
    # Rotary frequencies are no parameters: nobody loads them, and to_empty lost them.
    stage.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    stage.tie()


def stored_name(name: str, *, tied: bool) -> str:
    """The name under which a parameter is seeded and stored: a tied projection is the embedding."""
    return EMBEDDING if tied and name == HEAD else name


@torch.no_grad()
def seed_weights(stage: Stage, config: LlamaConfig, seed: int, at: Coordinate) -> None:
    """Fill this rank's slices with the first weights."""
    for name, parameter in stage.parameters_by_name().items():
        stored = stored_name(name, tied=config.tie_word_embeddings)
        cut = cut_of(parameter)
        values = first_weights(stored, cut.shape, cut.box(at), seed, config.initializer_range)
        local(parameter).copy_(values)
        stage.done()


def first_weights(
    name: str, shape: tuple[int, ...], box: Box, seed: int, deviation: float
) -> torch.Tensor:
    """A box of a parameter's first values: ones for norms, else normal with mean 0.

    Args:
        name: of the parameter.
        shape: of the whole parameter.
        box: the part that is wanted.
        seed: of the run.
        deviation: standard deviation (`initializer_range`).

    Returns:
        float32 on the CPU, of the box's shape.
    """
    if len(shape) == 1:
        return torch.ones(shape_of(box))
    (first, end), *rest = box
    columns = tuple(slice(start, stop) for start, stop in rest)
    values = torch.empty(shape_of(box))
    for start in range(first - first % ROWS_PER_BLOCK, end, ROWS_PER_BLOCK):
        rows = min(ROWS_PER_BLOCK, shape[0] - start)
        digest = hashlib.sha256(f"{seed}/{name}/{start}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        block = torch.empty((rows, *shape[1:])).normal_(0.0, deviation, generator=generator)
        low, high = max(first, start), min(end, start + rows)
        values[low - first : high - first] = block[(slice(low - start, high - start), *columns)]
    return values
