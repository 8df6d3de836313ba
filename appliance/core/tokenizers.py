"""How large the tokenizer of a model may be: what a gateway takes, and so what an import takes.

Called by `appliance.core.model_files` and `appliance.gateway.received`.
"""

from __future__ import annotations

LARGEST_TOKENIZER = 64 << 20
"""Bytes of `tokenizer.json`."""
LARGEST_TEMPLATE = 4 << 20
"""Bytes of a chat template, as UTF-8."""
