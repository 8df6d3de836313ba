"""Names and shapes of the weights of every family, from its configuration alone. Pure.

A function per Hugging Face class: what its `save_pretrained` writes, in the order of the model.
A test compares each with the state of the class that transformers makes of the same configuration.
Shapes are those of torch: a linear layer has [outputs, inputs], GPT-2's has [inputs, outputs].

Called through the rows of `appliance.core.families`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from appliance.core.config_members import Members

Shape = tuple[int, ...]
Tensors = Iterator[tuple[str, Shape]]


@dataclass(frozen=True)
class Sizes:
    """What every family has, whatever its configuration calls it."""

    hidden_size: int
    intermediate_size: int
    layers: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    vocabulary_size: int
    context_length: int
    tie_embeddings: bool

    @property
    def queries(self) -> int:
        """Width of all attention heads together."""
        return self.attention_heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads together; of the value heads, too."""
        return self.key_value_heads * self.head_dim


def linear(name: str, outputs: int, inputs: int, *, bias: bool) -> Tensors:
    """A linear layer."""
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def norm(name: str, width: int, *, bias: bool) -> Tensors:
    """A norm."""
    yield f"{name}.weight", (width,)
    if bias:
        yield f"{name}.bias", (width,)


def _attention(at: str, sizes: Sizes, *, bias: bool, output_bias: bool) -> Tensors:
    """Projections as Llama has them."""
    yield from linear(f"{at}.q_proj", sizes.queries, sizes.hidden_size, bias=bias)
    yield from linear(f"{at}.k_proj", sizes.keys, sizes.hidden_size, bias=bias)
    yield from linear(f"{at}.v_proj", sizes.keys, sizes.hidden_size, bias=bias)
    yield from linear(f"{at}.o_proj", sizes.hidden_size, sizes.queries, bias=output_bias)


def _feed_forward(at: str, sizes: Sizes, *, bias: bool) -> Tensors:
    """A gated feed-forward layer as Llama has it."""
    width, feed = sizes.hidden_size, sizes.intermediate_size
    yield from linear(f"{at}.gate_proj", feed, width, bias=bias)
    yield from linear(f"{at}.up_proj", feed, width, bias=bias)
    yield from linear(f"{at}.down_proj", width, feed, bias=bias)


def _output(sizes: Sizes, name: str = "lm_head") -> Tensors:
    if not sizes.tie_embeddings:
        yield f"{name}.weight", (sizes.vocabulary_size, sizes.hidden_size)


def _decoder(  # noqa: PLR0913  # in what the families that follow Llama differ
    sizes: Sizes,
    *,
    bias: bool = False,
    output_bias: bool = False,
    feed_bias: bool = False,
    head_norms: bool = False,
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm"),
) -> Tensors:
    yield "model.embed_tokens.weight", (sizes.vocabulary_size, sizes.hidden_size)
    for layer in range(sizes.layers):
        at = f"model.layers.{layer}"
        yield from _attention(f"{at}.self_attn", sizes, bias=bias, output_bias=output_bias)
        if head_norms:
            yield f"{at}.self_attn.q_norm.weight", (sizes.head_dim,)
            yield f"{at}.self_attn.k_norm.weight", (sizes.head_dim,)
        yield from _feed_forward(f"{at}.mlp", sizes, bias=feed_bias)
        for norm in norms:
            yield f"{at}.{norm}.weight", (sizes.hidden_size,)
    yield "model.norm.weight", (sizes.hidden_size,)
    yield from _output(sizes)


def llama(sizes: Sizes, members: Members) -> Tensors:
    """`LlamaForCausalLM`."""
    bias = members.flag("attention_bias")
    return _decoder(sizes, bias=bias, output_bias=bias, feed_bias=members.flag("mlp_bias"))


def mistral(sizes: Sizes, _: Members) -> Tensors:
    """`MistralForCausalLM`."""
    return _decoder(sizes)


def qwen2(sizes: Sizes, _: Members) -> Tensors:
    """`Qwen2ForCausalLM`."""
    return _decoder(sizes, bias=True)


def qwen3(sizes: Sizes, members: Members) -> Tensors:
    """`Qwen3ForCausalLM`."""
    bias = members.flag("attention_bias")
    return _decoder(sizes, bias=bias, output_bias=bias, head_norms=True)


_GEMMA_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def gemma2(sizes: Sizes, members: Members) -> Tensors:
    """`Gemma2ForCausalLM`."""
    bias = members.flag("attention_bias")
    return _decoder(sizes, bias=bias, output_bias=bias, norms=_GEMMA_NORMS)


def gemma3(sizes: Sizes, members: Members) -> Tensors:
    """`Gemma3ForCausalLM`."""
    bias = members.flag("attention_bias")
    return _decoder(sizes, bias=bias, output_bias=bias, head_norms=True, norms=_GEMMA_NORMS)


def phi3(sizes: Sizes, _: Members) -> Tensors:
    """`Phi3ForCausalLM`."""
    width, feed = sizes.hidden_size, sizes.intermediate_size
    yield "model.embed_tokens.weight", (sizes.vocabulary_size, width)
    for layer in range(sizes.layers):
        at = f"model.layers.{layer}"
        yield f"{at}.self_attn.o_proj.weight", (width, sizes.queries)
        yield f"{at}.self_attn.qkv_proj.weight", (sizes.queries + 2 * sizes.keys, width)
        yield f"{at}.mlp.gate_up_proj.weight", (2 * feed, width)
        yield f"{at}.mlp.down_proj.weight", (width, feed)
        yield f"{at}.input_layernorm.weight", (width,)
        yield f"{at}.post_attention_layernorm.weight", (width,)
    yield "model.norm.weight", (width,)
    yield from _output(sizes)


def gpt2(sizes: Sizes, _: Members) -> Tensors:
    """`GPT2LMHeadModel`."""
    width, feed = sizes.hidden_size, sizes.intermediate_size
    yield "transformer.wte.weight", (sizes.vocabulary_size, width)
    yield "transformer.wpe.weight", (sizes.context_length, width)
    for layer in range(sizes.layers):
        at = f"transformer.h.{layer}"
        yield from norm(f"{at}.ln_1", width, bias=True)
        for name, inputs, outputs in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, feed),
            ("mlp.c_proj", feed, width),
        ):
            yield f"{at}.{name}.weight", (inputs, outputs)
            yield f"{at}.{name}.bias", (outputs,)
        yield from norm(f"{at}.ln_2", width, bias=True)
    yield from norm("transformer.ln_f", width, bias=True)
    yield from _output(sizes)


def gpt_neox(sizes: Sizes, members: Members) -> Tensors:
    """`GPTNeoXForCausalLM`."""
    width, feed = sizes.hidden_size, sizes.intermediate_size
    bias = members.flag("attention_bias", otherwise=True)
    yield "gpt_neox.embed_in.weight", (sizes.vocabulary_size, width)
    for layer in range(sizes.layers):
        at = f"gpt_neox.layers.{layer}"
        yield from norm(f"{at}.input_layernorm", width, bias=True)
        yield from norm(f"{at}.post_attention_layernorm", width, bias=True)
        yield from linear(f"{at}.attention.query_key_value", 3 * width, width, bias=bias)
        yield from linear(f"{at}.attention.dense", width, width, bias=bias)
        yield from linear(f"{at}.mlp.dense_h_to_4h", feed, width, bias=True)
        yield from linear(f"{at}.mlp.dense_4h_to_h", width, feed, bias=True)
    yield from norm("gpt_neox.final_layer_norm", width, bias=True)
    yield from _output(sizes, "embed_out")


def _mamba(  # noqa: PLR0913  # in what the two hybrids differ
    at: str, sizes: Sizes, members: Members, inner: int, *, output_bias: bool, norm: bool
) -> Tensors:
    """A Mamba-2 mixer (Dao and Gu 2024) of `inner` channels."""
    heads = members.size("mamba_n_heads")
    width = members.size("mamba_d_head", inner // heads)
    if width * heads != inner:
        members.wrong("mamba_n_heads", f"has Mamba heads that do not share {inner} channels")
    groups, state = members.size("mamba_n_groups", 1), members.size("mamba_d_state", 256)
    convolved = inner + 2 * groups * state
    yield f"{at}.dt_bias", (heads,)
    yield f"{at}.A_log", (heads,)
    yield f"{at}.D", (heads,)
    yield f"{at}.conv1d.weight", (convolved, 1, members.size("mamba_d_conv", 4))
    if members.flag("mamba_conv_bias", otherwise=True):
        yield f"{at}.conv1d.bias", (convolved,)
    projected, bias = inner + convolved + heads, members.flag("mamba_proj_bias")
    yield from linear(f"{at}.in_proj", projected, sizes.hidden_size, bias=bias)
    if norm:
        yield f"{at}.norm.weight", (inner,)
    yield from linear(f"{at}.out_proj", sizes.hidden_size, inner, bias=output_bias)


def falcon_h1(sizes: Sizes, members: Members) -> Tensors:
    """`FalconH1ForCausalLM`: a mixer beside the attention of every layer."""
    width = sizes.hidden_size
    inner = members.size("mamba_d_ssm", members.size("mamba_expand", 2) * width)
    bias, feed_bias = members.flag("attention_bias"), members.flag("mlp_bias")
    yield "model.embed_tokens.weight", (sizes.vocabulary_size, width)
    for layer in range(sizes.layers):
        at = f"model.layers.{layer}"
        yield from _feed_forward(f"{at}.feed_forward", sizes, bias=feed_bias)
        yield from _mamba(
            f"{at}.mamba",
            sizes,
            members,
            inner,
            output_bias=members.flag("projectors_bias"),
            norm=members.flag("mamba_rms_norm"),
        )
        yield from _attention(f"{at}.self_attn", sizes, bias=bias, output_bias=bias)
        yield f"{at}.input_layernorm.weight", (width,)
        yield f"{at}.pre_ff_layernorm.weight", (width,)
    yield "model.final_layernorm.weight", (width,)
    yield from _output(sizes)


_MIXERS = {
    "mamba": "mamba",
    "linear_attention": "mamba",
    "attention": "attention",
    "full_attention": "attention",
}
"""What Granite's configurations call a layer, in releases before and after transformers 5."""


def granite_moe_hybrid(sizes: Sizes, members: Members) -> Tensors:
    """`GraniteMoeHybridForCausalLM` without experts: each layer has a mixer or attention."""
    width, feed = sizes.hidden_size, members.size("shared_intermediate_size")
    bias = members.flag("attention_bias")
    if members.size("num_local_experts"):
        members.wrong("num_local_experts", "has experts; take a model of the family without them")
    yield "model.embed_tokens.weight", (sizes.vocabulary_size, width)
    for layer, kind in enumerate(members.words("layer_types", sizes.layers, _MIXERS)):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (width,)
        yield f"{at}.post_attention_layernorm.weight", (width,)
        yield f"{at}.shared_mlp.input_linear.weight", (2 * feed, width)
        yield f"{at}.shared_mlp.output_linear.weight", (width, feed)
        if kind == "mamba":
            inner = members.size("mamba_expand", 2) * width
            proj_bias = members.flag("mamba_proj_bias")
            mixer = f"{at}.mamba"
            yield from _mamba(mixer, sizes, members, inner, output_bias=proj_bias, norm=True)
        else:
            yield from _attention(f"{at}.self_attn", sizes, bias=bias, output_bias=bias)
    yield "model.norm.weight", (width,)
    yield from _output(sizes)
