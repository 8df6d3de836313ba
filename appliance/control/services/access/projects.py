"""Projects: the tenants.

Rules kept here: each has a key of its own from its first moment; nothing of a new one may be
downloaded, and whether it may is changed by a call of its own alone, with a fresh second factor.

Called by `rpc.projects`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from appliance.api.projects.v1 import project_pb2, project_service_pb2
from appliance.control.auth.scopes import EVERYWHERE
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.change import Changes
from appliance.control.services.common.keys import Keys
from appliance.control.services.common.resources import missing, timestamp
from appliance.control.services.common.updates import (
    changed_fields,
    check_description,
    check_etag,
    etag_of,
)
from appliance.control.store import tables
from appliance.control.store.database import Database, Transaction
from appliance.core import names
from appliance.core.errors import AlreadyExists
from appliance.core.names import Name

_CHANGEABLE = ("description", "allow_downloads")


class Projects:
    """Makes and shows projects."""

    def __init__(
        self, database: Database, changes: Changes, keys: Keys, clock: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._changes = changes
        self._keys = keys
        self._clock = clock

    def get(self, caller: Caller, name: str) -> project_pb2.Project:
        """One project."""
        del caller  # the gate has decided
        project = Name.parse(name, "project")
        with self._database.read() as state:
            row = state.first(
                tables.project.select().where(tables.project.c.id == project["project"])
            )
        if row is None:
            raise missing(name)
        return _resource(row)

    def list(
        self, caller: Caller, request: project_service_pb2.ListProjectsRequest
    ) -> project_service_pb2.ListProjectsResponse:
        """The projects the caller holds a role in; all of them with a role in all projects."""
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, str)
        binding, project = tables.binding.c, tables.project.c
        with self._database.read() as state:
            domains = {
                row.domain
                for row in state.all(
                    tables.binding.select().where(binding.subject == caller.principal.subject)
                )
            }
            wanted = tables.project.select().order_by(project.id).limit(size + 1)
            if after is not None:
                wanted = wanted.where(project.id > after[0])
            if EVERYWHERE not in domains:
                wanted = wanted.where(project.id.in_(sorted(domains)))
            rows = state.all(wanted)
        page, token = paging.cut(rows, size, lambda row: (row.id,))
        return project_service_pb2.ListProjectsResponse(
            projects=[_resource(row) for row in page], next_page_token=token
        )

    def create(
        self, caller: Caller, request: project_service_pb2.CreateProjectRequest
    ) -> project_pb2.Project:
        """A new project and its key."""

        def work(transaction: Transaction) -> project_pb2.Project:
            identifier = names.check_id(request.project_id, "project_id")
            description = request.project.description
            check_description(description, "project.description")
            known = tables.project.select().where(tables.project.c.id == identifier)
            if transaction.first(known) is not None:
                name = names.project(identifier)
                raise AlreadyExists(f"{name} exists already: choose another id", name=name)
            now = self._clock()
            transaction.run(
                tables.project.insert().values(
                    id=identifier, description=description, create_time=now
                )
            )
            self._keys.create_project_key(transaction, identifier, now)
            return _resource(transaction.first(known))

        return self._changes.make(caller, request, project_pb2.Project, work)

    def update(
        self, caller: Caller, request: project_service_pb2.UpdateProjectRequest
    ) -> project_pb2.Project:
        """Change the description; allow or forbid downloads.

        Raises NotFound, InvalidInput, Conflict.
        """
        asked, projects = request.project, tables.project
        name = Name.parse(asked.name, "project", field="project.name")
        changed = changed_fields(request, _CHANGEABLE)
        values = {field: getattr(asked, field) for field in changed}
        check_description(str(values.get("description", "")), "project.description")

        def work(transaction: Transaction) -> project_pb2.Project:
            this = projects.c.id == name["project"]
            row = transaction.first(projects.select().where(this))
            if row is None:
                raise missing(asked.name)
            check_etag(asked.etag, _resource(row).etag, asked.name)
            transaction.run(projects.update().where(this).values(**values))
            return _resource(transaction.first(projects.select().where(this)))

        return self._changes.make(caller, request, project_pb2.Project, work)


def _resource(row: Any) -> project_pb2.Project:  # noqa: ANN401  # a row of SQLAlchemy
    return project_pb2.Project(
        name=names.project(row.id),
        description=row.description,
        create_time=timestamp(row.create_time),
        allow_downloads=row.allow_downloads,
        etag=etag_of(row.description, row.allow_downloads),
    )
