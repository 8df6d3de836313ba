"""What somebody made that goes on: each kind with the command that ends it."""

from __future__ import annotations

import shlex
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

from appliance.cli.main import appliance as command
from appliance.control.auth import rules
from appliance.control.auth.policy import Policy, compile_policy
from appliance.control.auth.roles import Roles
from appliance.control.auth.rules import PolicyRows, RoleLink
from appliance.control.auth.scopes import EVERYWHERE, PLATFORM
from appliance.control.services.access.principal_details import MAX_SHOWN, details_of
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.identity import Principal, PrincipalKind
from tests.fakes.rows import ROWS, fill
from tests.fakes.state import START, make_state

ALICE, CAROL = (Principal(PrincipalKind.USER, name) for name in ("alice", "carol"))
APP = Principal(PrincipalKind.SERVICE_ACCOUNT, "demo--app")


def policy(*links: RoleLink) -> Policy:
    roles = Roles.load()
    return compile_policy(PolicyRows(1, rules.rules_of(roles), links, {}), roles)


ALL = policy(
    RoleLink("user:carol", "administrator", PLATFORM),
    RoleLink("user:carol", "administrator", EVERYWHERE),
    RoleLink("user:alice", "viewer", "demo"),
)


def state_of(folder: Path) -> Database:
    """A row of each kind, all of them alice's."""
    database = make_state(folder)
    fill(database)
    with database.write() as transaction:
        transaction.run(tables.token.update().values(creator="users/alice"))
    return database


def seen(database: Database, who: Principal, held: Policy = ALL, now: datetime = START) -> Any:
    with database.read() as state:
        return details_of(state, held, CAROL, who, now)


def test_each_kind_is_named_with_the_command_that_ends_it(tmp_path: Path) -> None:
    database = state_of(tmp_path)
    found = seen(database, ALICE)
    assert {each.what: each.end_command for each in found.creations} == {
        "serviceAccounts/demo--app token k": (
            "appliance service-account revoke-token serviceAccounts/demo--app k"
        ),
        "nodes/node-2 join token n": "appliance node revoke-join-token n",
        "projects/demo/uploads/u token": "appliance user end-sessions users/alice",
        "projects/demo/jobs/job": "appliance job cancel projects/demo/jobs/job",
        "projects/demo/endpoints/chat": ("appliance endpoint delete projects/demo/endpoints/chat"),
    }
    assert list(found.roles) == ["viewer@projects/demo"]
    assert [each.id for each in found.sessions] == ["s"]
    for each in found.creations:
        program, noun, verb, *arguments = shlex.split(each.end_command)
        group = command.get_command(click.Context(command), noun)
        assert program == "appliance"
        assert isinstance(group, click.Group)
        made = group.get_command(click.Context(group), verb)
        assert made is not None
        assert len([p for p in made.params if isinstance(p, click.Argument)]) == len(arguments)
    with database.write() as transaction:
        transaction.run(tables.upload.update().values(principal=APP.subject))
    (upload,) = seen(database, APP).creations
    assert upload.end_command == (
        "appliance service-account revoke-token serviceAccounts/demo--app s"
    )
    database.close()


def test_what_ended_is_not_named_and_what_one_may_not_list_is_counted(tmp_path: Path) -> None:
    database = state_of(tmp_path)
    later = seen(database, ALICE, now=START + timedelta(days=400))
    assert [each.what for each in later.creations] == [
        "projects/demo/jobs/job",
        "projects/demo/endpoints/chat",
    ]
    assert not later.sessions
    on_platform = policy(
        RoleLink("user:carol", "administrator", PLATFORM),
        RoleLink("user:alice", "viewer", "demo"),
    )
    some = seen(database, ALICE, on_platform)
    assert [each.what for each in some.creations] == ["nodes/node-2 join token n"]
    # A role and four things.
    assert (list(some.roles), some.not_shown) == ([], 5)
    with database.write() as transaction:
        for number in range(MAX_SHOWN + 2):
            values = ROWS["job"] | {"uid": f"j{number}", "id": f"job-{number}"}
            transaction.run(tables.job.insert().values(**values))
    many = seen(database, ALICE)
    assert sum("/jobs/" in each.what for each in many.creations) == MAX_SHOWN
    assert many.not_shown == 3
    database.close()


def test_what_is_older_than_a_person_was_made_by_another_of_that_name(tmp_path: Path) -> None:
    database = state_of(tmp_path)
    with database.write() as transaction:
        later = START + timedelta(seconds=1)
        transaction.run(tables.user.update().values(create_time=later))
        # Uploads are taken from a person who is deleted.
        transaction.run(tables.upload.delete())
    assert not seen(database, ALICE).creations
    database.close()
