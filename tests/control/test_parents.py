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
BELOW = {
    "projects": "projects/typo",
    "datasets": "projects/typo/datasets/docs",
    "models": "projects/typo/models/small",
    "checkpoints": "projects/typo/jobs/one",
    "jobs": "projects/typo/jobs/one",
    "uploads": "projects/typo/uploads/one",
}
OF_OTHERS = {"ListDatasetVersions": "datasets", "ListModelVersions": "models"} | {
    "ListCheckpoints": "checkpoints",
    "ListJobMetrics": "jobs",
    "ListUploadParts": "uploads",
}


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
    request = GetMessageClass(method.input_type)()
    field = next(field for field in PARENTS if field in method.input_type.fields_by_name)
    setattr(request, field, BELOW[OF_OTHERS.get(method.name, "projects")])
    channel = appliance.channel(appliance.control.api_port)
    call = channel.unary_unary(path, request_serializer=type(request).SerializeToString)
    token = appliance.session("everywhere")
    error = await error_of(call(request, metadata=bearer(token)))
    assert error.reason == "RESOURCE_NOT_FOUND"
