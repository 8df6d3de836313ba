"""The families of models that are built in, and what works with each: one row a family.

Rules kept here:
* what is not in the table is not taken in, not read by a job and not served;
* "works" is said only of what a test shows with a small random model of the family
  (`tests/families/`); everything else has a sentence that a person sees when he asks for it.

The attack: a model whose architecture makes a library load code from elsewhere. No name outside
this table ever reaches one.

Pure. Import (`appliance.client`, `appliance.control`), job and endpoint services, jobs and the
worker read the same row. `docs/models.md` shows the table, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from appliance.core import encoder_tensors, family_tensors
from appliance.core.config_members import Members
from appliance.core.family_tensors import Sizes, Tensors

Shapes = Callable[[Sizes, Members], Tensors]


class FamilyUse(StrEnum):
    """What can be done with a model; the value is what a person reads."""

    IMPORT = "import"
    EVALUATE = "evaluate"
    QUANTIZE = "quantize"
    TRAIN = "train"
    TENSOR_PLAN = "tensor plan"
    PIPELINE_CUT = "pipeline cut"
    PRUNE = "prune"
    TEXT = "serve text"
    SPREAD = "serve on several devices"
    EMBEDDINGS = "serve embeddings"


_TRAINING = "train jobs make models of the Llama family"
_NOT_YET: Mapping[FamilyUse, str] = {
    FamilyUse.EVALUATE: "evaluate jobs measure how well a model continues a text",
    FamilyUse.QUANTIZE: "quantize jobs know the linear layers of the families that resemble Llama",
    FamilyUse.TRAIN: _TRAINING,
    FamilyUse.TENSOR_PLAN: _TRAINING,
    FamilyUse.PIPELINE_CUT: _TRAINING,
    FamilyUse.PRUNE: "there is no kind of job that prunes",
    FamilyUse.TEXT: "the engine of this version does not serve it",
    FamilyUse.SPREAD: "its engine was not tried on more than one device; say --tensor-parallel 1",
    FamilyUse.EMBEDDINGS: "replicas of this version answer with text alone",
}
"""Why something does not work, where a row has no reason of its own."""


@dataclass(frozen=True)
class Names:
    """What a family's configuration calls its sizes.

    `key_value_heads` and `head_dim` may be "": as many as attention heads, and their share of
    `hidden_size`.
    """

    hidden_size: str = "hidden_size"
    intermediate_size: str = "intermediate_size"
    layers: str = "num_hidden_layers"
    attention_heads: str = "num_attention_heads"
    key_value_heads: str = "num_key_value_heads"
    head_dim: str = "head_dim"
    vocabulary_size: str = "vocab_size"
    context_length: str = "max_position_embeddings"


@dataclass(frozen=True)
class EngineCode:
    """Where vLLM's code of a family is: a module below `vllm.model_executor.models`, a class."""

    module: str
    name: str


@dataclass(frozen=True)
class Family:
    """One row.

    Attributes:
        name: for people.
        model_type: of the configuration.
        classes: Hugging Face class -> names and shapes of its tensors.
        works: what can be done with it.
        names: of its sizes.
        aliases: other names of members, by which transformers sets the same attribute (its
            `attribute_map`): what they say must be the same.
        optional: sizes that may be left out: then they are what the other ones say.
        four_widths: an `intermediate_size` that is left out is four times the width.
        tied: whether output and embedding share weights where the configuration does not say.
        tied_names: tensors that files may hold beside the embedding that they are tied to.
        buffers: endings of tensors that older files hold, and which are no weights.
        prefix: of all names in the class; files of the family may leave it out.
        renamed: tensors that files call otherwise than the class of today does.
        engine: where the engine's code of it is.
        reasons: why something does not work, instead of what is said of every family.
    """

    name: str
    model_type: str
    classes: Mapping[str, Shapes]
    works: frozenset[FamilyUse]
    names: Names = Names()
    aliases: Mapping[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset({"head_dim"})
    four_widths: bool = False
    tied: bool = False
    tied_names: frozenset[str] = frozenset({"lm_head.weight"})
    buffers: tuple[str, ...] = (".inv_freq",)
    prefix: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)
    engine: EngineCode | None = None
    reasons: Mapping[FamilyUse, str] = field(default_factory=dict)


_LLAMA = frozenset(FamilyUse) - {FamilyUse.PRUNE, FamilyUse.EMBEDDINGS}
_LLAMA_LIKE = frozenset(
    {FamilyUse.IMPORT, FamilyUse.EVALUATE, FamilyUse.QUANTIZE, FamilyUse.TEXT, FamilyUse.SPREAD}
)
_DECODER = frozenset({FamilyUse.IMPORT, FamilyUse.EVALUATE, FamilyUse.TEXT, FamilyUse.SPREAD})
_ENCODER = frozenset({FamilyUse.IMPORT})
_EQUAL_HEADS = Names(key_value_heads="", head_dim="")
_HEADS = frozenset({"num_key_value_heads", "head_dim"})

FAMILIES: tuple[Family, ...] = (
    Family(
        name="Llama",
        model_type="llama",
        classes={"LlamaForCausalLM": family_tensors.llama},
        works=_LLAMA,
        optional=_HEADS,
        engine=EngineCode("llama", "LlamaForCausalLM"),
    ),
    Family(
        name="Qwen2",
        model_type="qwen2",
        classes={"Qwen2ForCausalLM": family_tensors.qwen2},
        works=_LLAMA_LIKE,
        engine=EngineCode("qwen2", "Qwen2ForCausalLM"),
    ),
    Family(
        name="Qwen3",
        model_type="qwen3",
        classes={"Qwen3ForCausalLM": family_tensors.qwen3},
        works=_LLAMA_LIKE,
        optional=frozenset(),
        engine=EngineCode("qwen3", "Qwen3ForCausalLM"),
    ),
    Family(
        name="Mistral",
        model_type="mistral",
        classes={"MistralForCausalLM": family_tensors.mistral},
        works=_LLAMA_LIKE,
        engine=EngineCode("mistral", "MistralForCausalLM"),
    ),
    Family(
        name="Gemma 2",
        model_type="gemma2",
        classes={"Gemma2ForCausalLM": family_tensors.gemma2},
        works=_LLAMA_LIKE,
        optional=frozenset(),
        tied=True,
        engine=EngineCode("gemma2", "Gemma2ForCausalLM"),
    ),
    Family(
        name="Gemma 3 (text)",
        model_type="gemma3_text",
        classes={"Gemma3ForCausalLM": family_tensors.gemma3},
        works=_LLAMA_LIKE,
        optional=frozenset(),
        tied=True,
        engine=EngineCode("gemma3", "Gemma3ForCausalLM"),
    ),
    Family(
        name="Phi-3",
        model_type="phi3",
        classes={"Phi3ForCausalLM": family_tensors.phi3},
        works=_LLAMA_LIKE,
        optional=_HEADS,
        engine=EngineCode("phi3", "Phi3ForCausalLM"),
    ),
    Family(
        name="GPT-2",
        model_type="gpt2",
        classes={"GPT2LMHeadModel": family_tensors.gpt2},
        works=_DECODER,
        names=Names(
            hidden_size="n_embd",
            intermediate_size="n_inner",
            layers="n_layer",
            attention_heads="n_head",
            key_value_heads="",
            head_dim="",
            context_length="n_positions",
        ),
        aliases={
            "hidden_size": "n_embd",
            "max_position_embeddings": "n_positions",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
        },
        four_widths=True,
        tied=True,
        buffers=(".attn.bias", ".attn.masked_bias"),
        prefix="transformer.",
        engine=EngineCode("gpt2", "GPT2LMHeadModel"),
    ),
    Family(
        name="GPT-NeoX",
        model_type="gpt_neox",
        classes={"GPTNeoXForCausalLM": family_tensors.gpt_neox},
        works=_DECODER,
        names=_EQUAL_HEADS,
        tied_names=frozenset({"embed_out.weight", "lm_head.weight"}),
        buffers=(".inv_freq", ".attention.bias", ".attention.masked_bias"),
        renamed={"embed_out.weight": "lm_head.weight"},
        engine=EngineCode("transformers", "TransformersForCausalLM"),
    ),
    Family(
        name="Falcon-H1",
        model_type="falcon_h1",
        classes={"FalconH1ForCausalLM": family_tensors.falcon_h1},
        works=_DECODER,
        aliases={"layer_types": "layers_block_type"},
        engine=EngineCode("falcon_h1", "FalconH1ForCausalLM"),
    ),
    Family(
        name="Granite 4 hybrid",
        model_type="granitemoehybrid",
        classes={"GraniteMoeHybridForCausalLM": family_tensors.granite_moe_hybrid},
        works=_DECODER,
        aliases={"layers_block_type": "layer_types"},
        optional=_HEADS,
        engine=EngineCode("granitemoehybrid", "GraniteMoeHybridForCausalLM"),
    ),
    Family(
        name="BERT",
        model_type="bert",
        classes={
            "BertModel": encoder_tensors.bert,
            "BertForMaskedLM": encoder_tensors.masked_bert,
        },
        works=_ENCODER,
        names=_EQUAL_HEADS,
        tied=True,
        tied_names=frozenset({"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}),
        buffers=(".position_ids",),
    ),
    Family(
        name="DistilBERT",
        model_type="distilbert",
        classes={
            "DistilBertModel": encoder_tensors.distilbert,
            "DistilBertForMaskedLM": encoder_tensors.masked_distilbert,
        },
        works=_ENCODER,
        names=Names(
            hidden_size="dim",
            intermediate_size="hidden_dim",
            layers="n_layers",
            attention_heads="n_heads",
            key_value_heads="",
            head_dim="",
        ),
        aliases={
            "hidden_size": "dim",
            "num_attention_heads": "n_heads",
            "num_hidden_layers": "n_layers",
        },
        tied=True,
        tied_names=frozenset({"vocab_projector.weight"}),
        buffers=(".position_ids",),
    ),
    Family(
        name="ModernBERT",
        model_type="modernbert",
        classes={
            "ModernBertModel": encoder_tensors.modernbert,
            "ModernBertForMaskedLM": encoder_tensors.masked_modernbert,
        },
        works=_ENCODER,
        names=_EQUAL_HEADS,
        tied=True,
        tied_names=frozenset({"decoder.weight"}),
        buffers=(".position_ids",),
    ),
)

BY_CLASS: Mapping[str, Family] = {name: row for row in FAMILIES for name in row.classes}


def reason(family: Family, use: FamilyUse) -> str:
    """Why something does not work with a family."""
    return family.reasons.get(use, _NOT_YET.get(use, "it is not built in"))


def refusal(architecture: str, use: FamilyUse) -> str:
    """Why something cannot be done with a model; "" when it can.

    Args:
        architecture: its Hugging Face class; "" for a model of a release that knew one family.
        use: what somebody asks for.

    Returns a sentence that follows the path of a field: "is of the family ...".
    """
    family = BY_CLASS.get(architecture or "LlamaForCausalLM")
    if family is None:
        return f"has the architecture {architecture}, which is not built in"
    if use in family.works:
        return ""
    why = reason(family, use)
    return f"is of the family {family.name}, for which `{use}` does not work: {why}"
