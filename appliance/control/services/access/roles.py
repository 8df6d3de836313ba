"""The roles: those that are built in, and the site's own."""

from __future__ import annotations

from appliance.api.access.v1 import role_pb2, role_service_pb2
from appliance.control.auth import roles, scopes
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.resources import missing
from appliance.core import names
from appliance.core.names import Name

_SCOPES = {
    "platform": scopes.PLATFORM_NAME,
    "everywhere": scopes.EVERYWHERE_NAME,
    "project": "projects/{project}",
}


class RoleService:
    """Shows roles.

    Args:
        known: the roles of this appliance.
    """

    def __init__(self, known: roles.Roles) -> None:
        self._roles = known

    def get(self, caller: Caller, name: str) -> role_pb2.Role:
        """One role."""
        del caller
        role = self._roles.roles.get(Name.parse(name, "role").id)
        if role is None:
            raise missing(name)
        return _resource(role)

    def list(
        self, caller: Caller, request: role_service_pb2.ListRolesRequest
    ) -> role_service_pb2.ListRolesResponse:
        """One page of roles, by name."""
        del caller
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, str)
        left = [
            role
            for _, role in sorted(self._roles.roles.items())
            if after is None or (role.id,) > after
        ]
        page, token = paging.cut(left[: size + 1], size, lambda role: (role.id,))
        return role_service_pb2.ListRolesResponse(
            roles=[_resource(role) for role in page], next_page_token=token
        )


def _resource(role: roles.Role) -> role_pb2.Role:
    return role_pb2.Role(
        name=names.role(role.id),
        description=role.description,
        permissions=role.permissions,
        assignable=role.assignable,
        scopes=[_SCOPES[scope] for scope in sorted(role.scopes)],
        site=role.site,
    )
