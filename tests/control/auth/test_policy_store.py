"""The policy in force: always that of the tables, at once, and checked again afterwards."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import delete, event, insert, update

from appliance.control.auth import cross_check, rules
from appliance.control.auth.policy import PolicyStore
from appliance.control.auth.roles import Roles
from appliance.control.auth.rules import RoleLink
from appliance.control.auth.scopes import PLATFORM
from appliance.control.events import ACCESS, Events
from appliance.control.store import tables
from appliance.control.store.database import Database, Transaction
from appliance.core.errors import FailedPrecondition
from appliance.core.identity import Principal, PrincipalKind
from tests.fakes import rows as attacker
from tests.fakes.state import START, add_application, add_binding, add_project

ALICE = Principal(PrincipalKind.USER, "alice")
BOB = Principal(PrincipalKind.USER, "bob")
APP = Principal(PrincipalKind.SERVICE_ACCOUNT, "app")
NODE = Principal(PrincipalKind.NODE, "gpu-1")
GATEWAY = Principal(PrincipalKind.GATEWAY, "main")


def test_a_binding_counts_at_once(state: Database, roles: Roles) -> None:
    store = PolicyStore(state, roles)
    add_project(state, "red")
    assert not store.current().allowed(ALICE, "red", "jobs.create")
    add_binding(state, "user:alice", "developer", "red")
    assert store.current().allowed(ALICE, "red", "jobs.create")
    assert store.current() is store.current()


@pytest.mark.attack
def test_a_role_taken_away_is_gone_before_the_change_returns(state: Database, roles: Roles) -> None:
    store = PolicyStore(state, roles)
    add_binding(state, "user:alice", "developer", "red")
    assert store.current().allowed(ALICE, "red", "jobs.create")
    with state.write() as transaction:
        transaction.run(delete(tables.binding))
        store.changed(transaction)
    assert not store._policy.allowed(ALICE, "red", "jobs.create")
    assert not store.current().allowed(ALICE, "red", "jobs.create")


def _write(transaction: Transaction, link: RoleLink) -> None:
    transaction.run(
        insert(tables.binding).values(
            id=f"{link.subject}-{link.role}-{link.domain}",
            subject=link.subject,
            role=link.role,
            domain=link.domain,
            creator="x",
            create_time=START,
        )
    )


VIEWER = RoleLink("user:alice", "viewer", "red")


def _reads(state: Database) -> list[str]:
    """Collects, from now on, what is read of the table of bindings."""
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().upper().startswith("SELECT") and "FROM binding" in statement:
            found.append(statement)

    for engine in (state._writer, state._reader):
        event.listen(engine, "before_cursor_execute", note)
    return found


def test_a_given_and_a_taken_role_read_no_other_binding(state: Database, roles: Roles) -> None:
    store = PolicyStore(state, roles)
    add_binding(state, "user:bob", "owner", "red")
    store.current()
    reads = _reads(state)
    with state.write() as transaction:
        _write(transaction, VIEWER)
        store.after_granting(transaction, VIEWER)
    assert store.current().allowed(ALICE, "red", "jobs.get")
    with state.write() as transaction:
        transaction.run(delete(tables.binding).where(tables.binding.c.subject == "user:alice"))
        store.after_revoking(transaction, VIEWER)
    assert not store.current().allowed(ALICE, "red", "jobs.get")
    assert store.current().allowed(BOB, "red", "bindings.create")
    assert reads == []
    assert store.cross_check()


def test_two_changes_of_one_transaction_both_count(state: Database, roles: Roles) -> None:
    store = PolicyStore(state, roles)
    store.current()
    other = RoleLink("user:bob", "owner", "red")
    with state.write() as transaction:
        for link in (VIEWER, other):
            _write(transaction, link)
            store.after_granting(transaction, link)
    assert store.current().allowed(ALICE, "red", "jobs.get")
    assert store.current().allowed(BOB, "red", "bindings.create")
    assert store.cross_check()


@pytest.mark.attack
def test_a_change_that_was_rolled_back_leaves_nothing_for_the_next(
    state: Database, roles: Roles
) -> None:
    store = PolicyStore(state, roles)
    store.current()

    def give(link: RoleLink, *, fail: bool) -> None:
        with state.write() as transaction:
            _write(transaction, link)
            store.after_granting(transaction, link)
            if fail:
                raise OSError("injected")

    with pytest.raises(OSError, match="injected"):
        give(RoleLink("user:alice", "owner", "red"), fail=True)
    # Somebody else's change takes the version that the first one would have had.
    add_binding(state, "user:bob", "viewer", "red")
    give(VIEWER, fail=False)
    assert not store.current().allowed(ALICE, "red", "bindings.create")
    assert store.current().allowed(ALICE, "red", "jobs.get")
    assert store.current().allowed(BOB, "red", "jobs.get")
    assert store.cross_check()


@pytest.mark.attack
@pytest.mark.parametrize(
    "bad",
    [
        RoleLink("user:alice", "owner", "/platform"),
        RoleLink("svc:app", "inference", "blue"),
        RoleLink("user:alice", "node", "/platform"),
    ],
)
def test_a_single_change_is_checked_like_all_of_them(
    state: Database, roles: Roles, bad: RoleLink
) -> None:
    store = PolicyStore(state, roles)
    add_project(state, "red")
    add_application(state, "app", "red")
    before = store.current()

    def change() -> None:
        with state.write() as transaction:
            _write(transaction, bad)
            store.after_granting(transaction, bad)

    with pytest.raises(FailedPrecondition, match="nobody gains"):
        change()
    assert store.current() is before


@pytest.mark.attack
@pytest.mark.parametrize("bad", [VIEWER, RoleLink("role:viewer", "owner", "red")])
def test_tables_that_say_something_else_than_memory_let_nobody_in(
    state: Database, roles: Roles, bad: RoleLink
) -> None:
    store = PolicyStore(state, roles)
    add_binding(state, "user:bob", "owner", "red")
    assert store.current().allowed(BOB, "red", "jobs.get")
    with state.write() as transaction:  # Past the checks, and without a new version.
        _write(transaction, bad)
    assert store.cross_check()
    with pytest.raises(FailedPrecondition, match="Nobody may do anything until"):
        store.current()


@pytest.mark.attack
def test_a_decision_that_casbin_would_not_make_anew_lets_nobody_in(
    state: Database, roles: Roles
) -> None:
    store = PolicyStore(state, roles)
    add_binding(state, "user:bob", "viewer", "red")
    policy = store.current()
    assert not policy.allowed(BOB, "red", "bindings.create")
    (question,) = [question for question, _ in policy.engine.kept()]
    policy.engine._decisions[question] = True
    assert store.cross_check()
    with pytest.raises(FailedPrecondition, match="was answered True"):
        store.current()


def test_what_was_compared_is_not_compared_again(state: Database, roles: Roles) -> None:
    store = PolicyStore(state, roles)
    assert not store.cross_check()
    store.current()
    assert [store.cross_check() for _ in range(2)] == [True, False]


async def test_a_change_is_followed_by_its_check(state: Database, roles: Roles) -> None:
    store, events = PolicyStore(state, roles), Events()
    store.current()
    with state.write() as transaction:  # One row in the tables, another in memory.
        _write(transaction, VIEWER)
        store.after_granting(transaction, RoleLink("user:alice", "owner", "red"))
    with ThreadPoolExecutor(1) as pool:
        task = asyncio.create_task(cross_check.run(store, pool, events, quiet=0.0))
        while store._broken is None:
            events.publish(ACCESS)
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
    with pytest.raises(FailedPrecondition, match="bindings in the tables are not those in force"):
        store.current()


@pytest.mark.attack
@pytest.mark.parametrize("statement", [1, 2, 3])
def test_an_error_while_changing_leaves_memory_and_database_as_they_were(
    state: Database, roles: Roles, broken_writes: dict[str, int], statement: int
) -> None:
    store = PolicyStore(state, roles)
    add_binding(state, "user:alice", "developer", "red")
    before = store.current()

    def change() -> None:
        with state.write() as transaction:
            transaction.run(delete(tables.binding))
            store.changed(transaction)

    broken_writes["count"] = statement
    with pytest.raises(OSError, match="injected"):
        change()
    broken_writes["count"] = -1
    assert store.current() is before
    with state.read() as reading:
        assert rules.read(reading, roles).links == (RoleLink("user:alice", "developer", "red"),)
        assert rules.version_of(reading) == before.version


@pytest.mark.attack
def test_a_change_that_does_not_validate_is_undone(state: Database, roles: Roles) -> None:
    store = PolicyStore(state, roles)
    before = store.current()

    def change() -> None:
        with state.write() as transaction:
            transaction.run(
                insert(tables.binding).values(
                    id="b",
                    subject="user:alice",
                    role="owner",
                    domain="red*",
                    creator="x",
                    create_time=START,
                )
            )
            store.changed(transaction)

    with pytest.raises(FailedPrecondition, match="nobody gains"):
        change()
    assert store.current() is before


@pytest.mark.attack
def test_rows_that_somebody_wrote_past_the_checks_let_nobody_in(
    state: Database, roles: Roles
) -> None:
    store = PolicyStore(state, roles)
    add_binding(state, "user:alice", "administrator", "/platform")
    assert store.current().allowed(ALICE, PLATFORM, "users.create")
    add_binding(state, "role:viewer", "administrator", "/platform")
    with pytest.raises(FailedPrecondition, match="nobody gains"):
        store.current()


@pytest.mark.attack
def test_a_database_that_cannot_be_read_lets_nobody_in(state: Database, roles: Roles) -> None:
    store = PolicyStore(state, roles)
    add_binding(state, "user:alice", "administrator", "/platform")
    assert store.current().allowed(ALICE, PLATFORM, "users.create")
    with attacker.somebody(state.path) as raw:
        raw.execute("DELETE FROM meta")
    with pytest.raises(FailedPrecondition, match="run `appliance init`"):
        store.current()


def test_machines_hold_their_roles_by_their_certificates(state: Database, roles: Roles) -> None:
    store = PolicyStore(state, roles)
    with state.write() as transaction:
        transaction.run(insert(tables.node).values(id="gpu-1", state="READY", create_time=START))
        transaction.run(insert(tables.gateway).values(id="main", state="READY", create_time=START))
        store.changed(transaction)
    policy = store.current()
    assert policy.allowed(NODE, PLATFORM, "agent.connect")
    assert policy.allowed(GATEWAY, PLATFORM, "routing.watch")
    assert not policy.allowed(NODE, PLATFORM, "routing.watch")
    assert not policy.allowed(Principal(PrincipalKind.NODE, "gpu-2"), PLATFORM, "agent.connect")
    with state.write() as transaction:
        transaction.run(update(tables.node).values(state="EVICTED"))
        store.changed(transaction)
    assert not store.current().allowed(NODE, PLATFORM, "agent.connect")


def test_an_application_holds_roles_at_home(state: Database, roles: Roles) -> None:
    store = PolicyStore(state, roles)
    add_project(state, "red")
    add_application(state, "app", "red")
    add_binding(state, "svc:app", "inference", "red")
    assert store.current().allowed(APP, "red", "endpoints.infer")
    assert not store.current().allowed(APP, "red", "endpoints.create")
