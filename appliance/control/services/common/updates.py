"""What an update may change, and whether the resource is still as its caller saw it.

Rules kept here:
* an update names the fields that it changes (`update_mask`), so a zero or an empty text that is
  given on purpose is one, and a field that the caller's program does not know stays as it is;
* with an `etag` the change is made to the state that the caller has seen, or not at all.

The form is that of Google's AIP-134 (update), AIP-135 (delete) and AIP-154 (etags). Used by every
service that updates or deletes a resource.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from appliance.core.errors import Conflict, InvalidInput

MAX_DESCRIPTION = 1000
"""Characters."""


def changed_fields(request: Any, allowed: Sequence[str]) -> frozenset[str]:  # noqa: ANN401  # an Update request of any noun
    """The fields that an update changes.

    Args:
        request: has `update_mask`.
        allowed: the fields of the resource that can be changed.

    Raises:
        InvalidInput: the mask is empty, or names a field that cannot be changed.
    """
    paths, can = frozenset(request.update_mask.paths), ", ".join(allowed)
    wrong = ""
    if not paths:
        wrong = f"names no field: name what is to be changed, of {can}"
    elif unknown := sorted(paths - set(allowed)):
        wrong = f"names {', '.join(map(ascii, unknown))}: what can be changed is {can}"
    if wrong:
        raise InvalidInput(f"update_mask {wrong}", fields={"update_mask": wrong})
    return paths


def check_description(description: str, field: str) -> None:
    """Raise InvalidInput naming `field` when a description is longer than it may be."""
    if len(description) > MAX_DESCRIPTION:
        wrong = f"is longer than {MAX_DESCRIPTION} characters"
        raise InvalidInput(f"{field} {wrong}", fields={field: wrong})


def etag_of(*values: object) -> str:
    """The etag of a resource whose state has no count of changes: a digest of what can change.

    Args:
        values: texts, numbers and booleans. One of them differs for another resource of the same
            name (a uid, the time it was created): a name comes free when its resource is deleted.
    """
    return blake2b(ascii(values).encode(), digest_size=8).hexdigest()


def check_etag(given: str, current: str, name: str) -> None:
    """Raise Conflict when the caller has seen another state; an empty `given` is any state."""
    if given and given != current:
        raise Conflict(
            f"{name} has changed since you read it: read it again, and repeat with its new etag"
        )
