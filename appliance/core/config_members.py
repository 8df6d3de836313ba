"""The members of a model's `config.json`, each read within its bounds. Pure.

Rule kept here: a member that is wrong is noted and read as the smallest value that it may have, so
that one reading finds everything that is wrong.

The attack: numbers chosen to exhaust the memory of whoever trusts them.

Called by `appliance.core.model_config` and `appliance.core.family_tensors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.core.names import shown

_WIDTH = (1, 1 << 16)
_FEED = (1, 1 << 18)
_LAYERS = (1, 1024)
_HEADS = (1, 1024)
_CONTEXT = (1, 1 << 24)
_STATE = (1, 1 << 12)

BOUNDS: Mapping[str, tuple[int, int]] = {
    "hidden_size": _WIDTH, "n_embd": _WIDTH, "dim": _WIDTH,
    "intermediate_size": _FEED, "n_inner": _FEED, "hidden_dim": _FEED,
    "shared_intermediate_size": _FEED, "mamba_d_ssm": _FEED,
    "num_hidden_layers": _LAYERS, "n_layer": _LAYERS, "n_layers": _LAYERS,
    "num_attention_heads": _HEADS, "n_head": _HEADS, "n_heads": _HEADS,
    "num_key_value_heads": _HEADS, "mamba_n_groups": _HEADS,
    "vocab_size": (1, 1 << 21), "type_vocab_size": (1, 1024),
    "max_position_embeddings": _CONTEXT, "n_positions": _CONTEXT,
    "head_dim": _STATE, "mamba_n_heads": _STATE, "mamba_d_head": _STATE, "mamba_d_state": _STATE,
    "mamba_d_conv": (1, 64), "mamba_expand": (1, 16),
    "num_local_experts": (0, 1024),
}  # fmt: skip
"""Least and most of every size, by the member's name in Hugging Face's configurations."""


class Members:
    """Reads members.

    Args:
        config: the value of `config.json`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self.problems: dict[str, str] = {}
        """By member: what is wrong with it."""

    def has(self, member: str) -> bool:
        """Whether the configuration says something about a member."""
        return self._config.get(member) is not None

    def size(self, member: str, otherwise: int | None = None) -> int:
        """A whole number of `BOUNDS`.

        Args:
            member: its name.
            otherwise: what it is where it is left out, or `auto`; None when it may not be.
        """
        low, high = BOUNDS[member]
        value = self._config.get(member)
        if value in (None, "auto") and otherwise is not None:
            return otherwise
        if value is None:
            self.wrong(member, f"has no {member}")
            return low
        if type(value) is not int or not low <= value <= high:
            self.wrong(member, f"has {member} outside {low} to {high}")
            return low
        return value

    def flag(self, member: str, *, otherwise: bool = False) -> bool:
        """True or false."""
        value = self._config.get(member)
        if value is None:
            return otherwise
        if not isinstance(value, bool):
            self.wrong(member, f"has a {member} that is neither true nor false")
            return otherwise
        return value

    def words(self, member: str, count: int, known: Mapping[str, str]) -> list[str]:
        """One word for each layer.

        Args:
            member: a list in the configuration.
            count: layers.
            known: word -> what it means; the meanings are returned.
        """
        value = self._config.get(member)
        if not isinstance(value, list) or len(value) != count:
            self.wrong(member, f"has a {member} that does not name each of {count} layers")
            return []
        unknown = [word for word in value if not isinstance(word, str) or word not in known]
        if unknown:
            choice = ", ".join(sorted(known))
            self.wrong(member, f"has {shown(str(unknown[0]))} in {member}; known are {choice}")
            return []
        return [known[word] for word in value]

    def wrong(self, member: str, why: str) -> None:
        """Note what is wrong."""
        self.problems.setdefault(member, why)
