"""How large the tokenizer of a model may be: what a gateway takes, and so what an import takes.

Called by `appliance.core.model_files` and `appliance.gateway.received`.
"""

from __future__ import annotations

MAX_TOKENIZER = 64 << 20
"""Bytes of `tokenizer.json`."""
MAX_TEMPLATE = 4 << 20
"""Bytes of a chat template, as UTF-8."""
