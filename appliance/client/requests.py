"""What both clients do before a call: whole names, one request id, a message that is checked.

Called by `calls` and `async_calls`, which differ in how they wait.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.client import naming
from appliance.client.methods import Method
from appliance.client.target import Target
from appliance.core import names
from appliance.core.errors import InvalidInput

PAGE_SIZE = 200
_NOT_CHANGED = frozenset({"name", "etag"})
"""Fields of a resource that say which one is meant, in a change."""


class Requests:
    """Makes the requests of one caller."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def name(self, kind: str, text: str) -> str:
        """The resource name that a text means; see `naming.complete`."""
        return naming.complete(kind, text, self.target.project) if text else ""

    def project(self, text: str) -> str:
        """`projects/{project}` of a project, or of the one that is chosen."""
        return names.project(naming.needed(text or self.target.project))

    def changed(
        self, kind: str, resource: Any, mask: Sequence[str] | None
    ) -> tuple[Any, dict[str, list[str]]]:
        """A resource with its whole name, and which of its fields change.

        Without a mask, those are the fields that a mapping has. Raises InvalidInput when nobody
        says which change.
        """
        if isinstance(resource, Mapping):
            resource = dict(resource)
            if mask is None:
                mask = [field for field in resource if field not in _NOT_CHANGED]
            resource["name"] = self.name(kind, str(resource.get("name", "")))
        elif mask is None:
            raise InvalidInput(
                "update_mask: name the fields that change, or give the resource as a mapping of "
                "its name and these fields alone"
            )
        return resource, {"paths": list(mask)}

    def make(self, method: Method, fields: dict[str, Any]) -> Any:
        """The request of one call. Raises InvalidInput naming the field that is wrong."""
        given = {field: value for field, value in fields.items() if value is not None}
        request = method.filled(**given)
        naming.complete_within(request, self.name)
        if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:
            request.request_id = str(uuid.uuid4())
        return request


def has_pages(request: Any) -> bool:
    """Whether the list of a request comes in pages."""
    return "page_token" in request.DESCRIPTOR.fields_by_name


def is_state(method: Method) -> bool:
    """Whether each message of a stream says everything that those before have said."""
    return method.short.startswith("Watch")
