"""Sealed values: database columns and wrapped keys, each of which opens only where it belongs.

A sealed value is the byte 1 and a FLOE stream whose associated data is RFC 8785 JSON of what it
belongs to.

The attack: somebody can read and write the database. They copy or edit a value, or put it into
another row. Rule kept here: the reader says what the value belongs to; nothing that is stored
beside it is believed.

Called by `appliance.crypto.keys` and by the services of the control plane that store secrets.
"""

from __future__ import annotations

from collections.abc import Mapping

import rfc8785

from appliance.core.errors import Tampered
from appliance.crypto.floe import floe_decrypt, floe_encrypt

FIELD_VERSION = b"\x01"
FIELD_SEGMENT = 1 << 16


def seal_field(data: bytes, key: bytes, aad: Mapping[str, str | int]) -> bytes:
    """Seal a small value, such as a database column, so that it opens only where it belongs.

    Args:
        data: the value.
        key: 32 bytes; may seal any number of values, since each has its own derived keys.
        aad: what the value belongs to, for instance table, row, column and version; JSON values.
    """
    return FIELD_VERSION + floe_encrypt(
        key, rfc8785.dumps(dict(aad)), data, segment_size=FIELD_SEGMENT
    )


def open_field(blob: bytes, key: bytes, aad: Mapping[str, str | int]) -> bytes:
    """Open what `seal_field` made.

    Raises:
        Tampered: it was changed, moved to another place or sealed by another key.
    """
    try:
        return floe_decrypt(key, rfc8785.dumps(dict(aad)), _field_stream(blob))
    except Tampered as error:
        where = ", ".join(f"{name} {value}" for name, value in sorted(aad.items()))
        raise Tampered(
            f"The sealed value of {where} is refused: {error}. Restore it from a backup.",
            object=where,
        ) from error


def _field_stream(blob: bytes) -> bytes:
    if blob[:1] != FIELD_VERSION:
        raise Tampered("it is not a sealed value")
    return blob[1:]
