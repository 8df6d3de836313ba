"""Projects: the tenants.

Rules kept here: each has a key of its own from its first moment; nothing of a new one may be
downloaded, and whether it may is changed by a call of its own alone, with a fresh second factor;
one that is deleted is empty, and its key, its tombstones and who holds which role in it go with it
in one transaction.

Called by `rpc.projects`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from appliance.api.projects.v1 import project_pb2, project_service_pb2
from appliance.control.auth.policy import PolicyStore
from appliance.control.auth.rules import RoleLink
from appliance.control.auth.scopes import EVERYWHERE
from appliance.control.events import ACCESS, ROUTING, Events
from appliance.control.services.access import project_contents
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
from appliance.control.store import requests, tables
from appliance.control.store.database import Database, Transaction
from appliance.core import names
from appliance.core.errors import AlreadyExists
from appliance.core.names import Name

_CHANGEABLE = ("description", "allow_downloads")


class Projects:
    """Makes, shows, changes and deletes projects.

    Args:
        database: the state.
        changes: for what has a request id.
        keys: makes a project's key.
        policies: the policy in force.
        erase: deletes what the caller does not see of an empty project: its keys.
        events: wakes who watches roles.
        clock: the time, aware.
    """

    def __init__(  # noqa: PLR0913  # the parts of the control plane it acts on
        self,
        database: Database,
        changes: Changes,
        keys: Keys,
        policies: PolicyStore,
        erase: Callable[[Transaction, str], None],
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._changes = changes
        self._keys = keys
        self._policies = policies
        self._erase = erase
        self._events = events
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

    def delete(
        self, caller: Caller, request: project_service_pb2.DeleteProjectRequest
    ) -> project_service_pb2.DeleteProjectResponse:
        """Delete an empty project.

        Raises NotFound, Conflict, FailedPrecondition with the names of what is in it.
        """
        project = Name.parse(request.name, "project").id

        def work(transaction: Transaction) -> project_service_pb2.DeleteProjectResponse:
            this = tables.project.c.id == project
            row = transaction.first(tables.project.select().where(this))
            if row is None:
                raise missing(request.name)
            check_etag(request.etag, _resource(row).etag, request.name)
            policy = self._policies.current()
            project_contents.refuse_unless_empty(
                transaction, project, lambda need: policy.allowed(caller.principal, project, need)
            )
            held = tables.binding.c.domain == project
            links = [
                RoleLink(each.subject, each.role, each.domain)
                for each in transaction.all(tables.binding.select().where(held))
            ]
            transaction.run(tables.binding.delete().where(held))
            transaction.run(tables.upload.delete().where(tables.upload.c.project == project))
            of_project = tables.tombstone.c.project == project
            tombstones = transaction.run(tables.tombstone.delete().where(of_project))
            self._erase(transaction, project)
            transaction.run(tables.project.delete().where(this))
            requests.forget_about(transaction, request.name)
            self._policies.after_revoking(transaction, *links)
            transaction.after_commit(lambda: self._events.publish(ACCESS, ROUTING))
            return project_service_pb2.DeleteProjectResponse(
                bindings=len(links), tombstones=tombstones
            )

        answer = project_service_pb2.DeleteProjectResponse
        return self._changes.make(caller, request, answer, work)


def _resource(row: Any) -> project_pb2.Project:  # noqa: ANN401  # a row of SQLAlchemy
    return project_pb2.Project(
        name=names.project(row.id),
        description=row.description,
        create_time=timestamp(row.create_time),
        allow_downloads=row.allow_downloads,
        etag=etag_of(row.description, row.allow_downloads, row.create_time.isoformat()),
    )
