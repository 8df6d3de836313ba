"""Names and shapes of the weights of encoders: BERT, DistilBERT, ModernBERT. Pure.

As `appliance.core.family_tensors`, for models that read a text as a whole. Each has two classes:
the encoder alone, and the one that fills in masked words.
"""

from __future__ import annotations

from appliance.core.config_members import Members
from appliance.core.family_tensors import Sizes, Tensors, linear, norm


def bert(sizes: Sizes, members: Members) -> Tensors:
    """`BertModel`."""
    yield from _bert("", sizes, members)
    yield from linear("pooler.dense", sizes.hidden_size, sizes.hidden_size, bias=True)


def masked_bert(sizes: Sizes, members: Members) -> Tensors:
    """`BertForMaskedLM`."""
    width = sizes.hidden_size
    yield from _bert("bert.", sizes, members)
    yield "cls.predictions.bias", (sizes.vocabulary_size,)
    yield from linear("cls.predictions.transform.dense", width, width, bias=True)
    yield from norm("cls.predictions.transform.LayerNorm", width, bias=True)
    if not sizes.tie_embeddings:
        yield from linear("cls.predictions.decoder", sizes.vocabulary_size, width, bias=True)


def _bert(prefix: str, sizes: Sizes, members: Members) -> Tensors:
    width, feed = sizes.hidden_size, sizes.intermediate_size
    at = f"{prefix}embeddings"
    yield f"{at}.word_embeddings.weight", (sizes.vocabulary_size, width)
    yield f"{at}.position_embeddings.weight", (sizes.context_length, width)
    yield f"{at}.token_type_embeddings.weight", (members.size("type_vocab_size", 2), width)
    yield from norm(f"{at}.LayerNorm", width, bias=True)
    for layer in range(sizes.layers):
        at = f"{prefix}encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            yield from linear(f"{at}.attention.self.{name}", width, width, bias=True)
        yield from linear(f"{at}.attention.output.dense", width, width, bias=True)
        yield from norm(f"{at}.attention.output.LayerNorm", width, bias=True)
        yield from linear(f"{at}.intermediate.dense", feed, width, bias=True)
        yield from linear(f"{at}.output.dense", width, feed, bias=True)
        yield from norm(f"{at}.output.LayerNorm", width, bias=True)


def distilbert(sizes: Sizes, _: Members) -> Tensors:
    """`DistilBertModel`."""
    yield from _distilbert("", sizes)


def masked_distilbert(sizes: Sizes, _: Members) -> Tensors:
    """`DistilBertForMaskedLM`."""
    width = sizes.hidden_size
    yield from _distilbert("distilbert.", sizes)
    yield from linear("vocab_transform", width, width, bias=True)
    yield from norm("vocab_layer_norm", width, bias=True)
    if not sizes.tie_embeddings:
        yield "vocab_projector.weight", (sizes.vocabulary_size, width)
    yield "vocab_projector.bias", (sizes.vocabulary_size,)


def _distilbert(prefix: str, sizes: Sizes) -> Tensors:
    width, feed = sizes.hidden_size, sizes.intermediate_size
    at = f"{prefix}embeddings"
    yield f"{at}.word_embeddings.weight", (sizes.vocabulary_size, width)
    yield f"{at}.position_embeddings.weight", (sizes.context_length, width)
    yield from norm(f"{at}.LayerNorm", width, bias=True)
    for layer in range(sizes.layers):
        at = f"{prefix}transformer.layer.{layer}"
        for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
            yield from linear(f"{at}.attention.{name}", width, width, bias=True)
        yield from norm(f"{at}.sa_layer_norm", width, bias=True)
        yield from linear(f"{at}.ffn.lin1", feed, width, bias=True)
        yield from linear(f"{at}.ffn.lin2", width, feed, bias=True)
        yield from norm(f"{at}.output_layer_norm", width, bias=True)


def modernbert(sizes: Sizes, members: Members) -> Tensors:
    """`ModernBertModel`."""
    yield from _modernbert("", sizes, members)


def masked_modernbert(sizes: Sizes, members: Members) -> Tensors:
    """`ModernBertForMaskedLM`."""
    width = sizes.hidden_size
    yield from _modernbert("model.", sizes, members)
    yield from linear("head.dense", width, width, bias=members.flag("classifier_bias"))
    yield from norm("head.norm", width, bias=members.flag("norm_bias"))
    if not sizes.tie_embeddings:
        yield "decoder.weight", (sizes.vocabulary_size, width)
    if members.flag("decoder_bias", otherwise=True):
        yield "decoder.bias", (sizes.vocabulary_size,)


def _modernbert(prefix: str, sizes: Sizes, members: Members) -> Tensors:
    width, feed = sizes.hidden_size, sizes.intermediate_size
    attention_bias, feed_bias = members.flag("attention_bias"), members.flag("mlp_bias")
    norm_bias = members.flag("norm_bias")
    yield f"{prefix}embeddings.tok_embeddings.weight", (sizes.vocabulary_size, width)
    yield from norm(f"{prefix}embeddings.norm", width, bias=norm_bias)
    for layer in range(sizes.layers):
        at = f"{prefix}layers.{layer}"
        if layer:
            # Before the first one, the norm of the embeddings does it.
            yield from norm(f"{at}.attn_norm", width, bias=norm_bias)
        yield from linear(f"{at}.attn.Wqkv", 3 * width, width, bias=attention_bias)
        yield from linear(f"{at}.attn.Wo", width, width, bias=attention_bias)
        yield from norm(f"{at}.mlp_norm", width, bias=norm_bias)
        yield from linear(f"{at}.mlp.Wi", 2 * feed, width, bias=feed_bias)
        yield from linear(f"{at}.mlp.Wo", width, feed, bias=feed_bias)
    yield from norm(f"{prefix}final_norm", width, bias=norm_bias)
