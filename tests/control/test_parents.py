"""A list below a project that does not exist is refused, not empty.

Whoever holds a role in all projects passes the door with any name: the service has to look.
"""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message_factory import GetMessageClass

from appliance.control.bootstrap import parts
from appliance.control.rpc.servicer import descriptor_of
from tests.fakes.appliance import Appliance, bearer, error_of

PARENTS = ("parent", "scope", "name")
_COLLECTIONS = ("datasets", "models", "jobs", "uploads", "endpoints")
BELOW = ("projects/typo", *(f"projects/typo/{each}/one" for each in _COLLECTIONS))
"""What a list can be below; each takes one of them."""


def lists() -> dict[str, Any]:
    """Every RPC that lists what is below something, with its descriptor."""
    return {
        f"/{service.full_name}/{method.name}": method
        for service in map(descriptor_of, parts.API)
        for method in service.methods
        if method.name.startswith("List")
        and any(field in method.input_type.fields_by_name for field in PARENTS)
    }


@pytest.mark.parametrize("path", lists())
async def test_a_list_below_a_project_that_is_not_there_is_refused(
    appliance: Appliance, path: str
) -> None:
    method = lists()[path]
    appliance.user("everywhere", ("owner", "*"), ("administrator", "*"))
    field = next(field for field in PARENTS if field in method.input_type.fields_by_name)
    request = GetMessageClass(method.input_type)
    channel = appliance.channel(appliance.control.api_port)
    call = channel.unary_unary(path, request_serializer=request.SerializeToString)
    token = appliance.session("everywhere")
    reasons = [
        (await error_of(call(request(**{field: below}), metadata=bearer(token)))).reason
        for below in BELOW
    ]
    # A name of another kind is no name here; one that fits is looked for.
    assert set(reasons) <= {"INVALID_INPUT", "RESOURCE_NOT_FOUND"}
    assert "RESOURCE_NOT_FOUND" in reasons
