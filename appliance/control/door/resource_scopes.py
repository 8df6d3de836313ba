"""Where a resource is, for the policy: in a project, in all projects, or on the platform.

Rules kept here:
* a name that is empty or does not parse is an error, never "the platform";
* only a field that is called a scope can mean all projects or the platform;
* the row of a service account or a binding says where it is; without one a binding has no place at
  all, and a service account that of its name.

Called by the gate before it asks the policy.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.control.auth import scopes
from appliance.control.auth.scopes import PLATFORM
from appliance.control.services.common.resources import missing
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.errors import InvalidInput, NotFound
from appliance.core.names import ACCOUNT_MARK, Name, is_id


@dataclass(frozen=True)
class ResourceScope:
    """Where a resource is.

    Args:
        domain: of the policy: a project's id, or of `auth.scopes`.
        hidden: whoever holds no role there may not learn whether the resource exists.
    """

    domain: str
    hidden: bool


ON_PLATFORM = ResourceScope(PLATFORM, hidden=False)


class ResourceScopes:
    """Finds the place of a resource."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, resource: str, field: str) -> ResourceScope:
        """The place of the resource that a request names in `field`; no field is the platform.

        Raises InvalidInput for text that is no name, NotFound for a name that only a row could
        place and that has none.
        """
        if not field:
            return ON_PLATFORM
        if field.rpartition(".")[2] == "scope":
            domain = scopes.parse(resource, field)
            return ResourceScope(domain, hidden=is_id(domain))
        if not resource:
            wrong = "is empty: write the name of what the call is about"
            raise InvalidInput(f"{field} {wrong}", fields={field: wrong})
        name = Name.parse(resource, field=field)
        if name.project is not None:
            return ResourceScope(name.project, hidden=True)
        if name.kind == "serviceAccount":
            return ResourceScope(self._project_of(name), hidden=True)
        if name.kind == "binding":
            return ResourceScope(self._look(tables.binding.c.domain, name), hidden=True)
        return ON_PLATFORM

    def _project_of(self, account: Name) -> str:
        try:
            return self._look(tables.service_account.c.project, account)
        except NotFound:
            # The name of one that was deleted says it, too: a repeated call gets the first answer.
            project, mark, _ = account.id.rpartition(ACCOUNT_MARK)
            if not mark:
                raise
            return project

    def _look(self, column: object, name: Name) -> str:
        table = column.table  # type: ignore[attr-defined]  # a column of one of the two tables
        with self._database.read() as state:
            found = state.value(
                table.select().with_only_columns(column).where(table.c.id == name.id)
            )
        if found is None:
            raise missing(str(name))
        return str(found)
