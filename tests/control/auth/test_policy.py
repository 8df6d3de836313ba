"""Who may do what. The ways Casbin fails open are each tried here, and lead nowhere."""

import dataclasses
import importlib.metadata
import random
import threading
from pathlib import Path

import pytest
from sqlalchemy import delete, insert, update

from appliance.control.auth import policy as module
from appliance.control.auth import rules
from appliance.control.auth.policy import Policy, PolicyStore, compile_policy, enforcer
from appliance.control.auth.roles import Role, Roles
from appliance.control.auth.rules import Link, Rows, Rule
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.core.identity import ANONYMOUS, Principal, PrincipalKind
from tests.fakes.state import START, add_application, add_binding, add_project

ALICE = Principal(PrincipalKind.USER, "alice")
BOB = Principal(PrincipalKind.USER, "bob")
APP = Principal(PrincipalKind.SERVICE_ACCOUNT, "app")
NODE = Principal(PrincipalKind.NODE, "gpu-1")
GATEWAY = Principal(PrincipalKind.GATEWAY, "main")


def _rows(
    roles: Roles, *links: Link, extra: tuple[Rule, ...] = (), homes: dict[str, str] | None = None
) -> Rows:
    return Rows(1, (*rules.rules_of(roles), *extra), links, homes or {})


def _compiled(roles: Roles, *links: Link, extra: tuple[Rule, ...] = ()) -> Policy:
    return compile_policy(_rows(roles, *links, extra=extra), roles)


def test_a_role_in_a_project_holds_there_alone(roles: Roles) -> None:
    policy = _compiled(roles, Link("user:alice", "developer", "red"))
    assert [policy.allowed(ALICE, where, "jobs.create") for where in ("red", "blue", None)] == [
        True,
        False,
        False,
    ]
    assert not policy.allowed(ALICE, "red", "bindings.create")
    assert not policy.allowed(BOB, "red", "jobs.create")


def test_a_role_on_the_appliance_holds_in_every_project(roles: Roles) -> None:
    policy = _compiled(roles, Link("user:alice", "administrator", "*"))
    assert policy.allowed(ALICE, None, "users.create")
    assert policy.allowed(ALICE, "red", "jobs.create")
    assert not policy.allowed(ALICE, None, "agent.connect")


def test_what_a_principal_holds(roles: Roles) -> None:
    policy = _compiled(
        roles, Link("user:alice", "viewer", "red"), Link("user:alice", "auditor", "*")
    )
    assert policy.roles_of(ALICE) == [("auditor", "*"), ("viewer", "red")]
    assert policy.roles_of(BOB) == []
    policy = _compiled(roles, Link("user:alice", "viewer", "red"))
    assert [policy.holds_any_role(ALICE, where) for where in ("red", "blue", None)] == [
        True,
        False,
        False,
    ]


def test_deny_wins(roles: Roles) -> None:
    link = Link("user:alice", "developer", "red")
    deny = Rule("user:alice", "red", "jobs", "create", "deny")
    assert not _compiled(roles, link, extra=(deny,)).allowed(ALICE, "red", "jobs.create")
    assert _compiled(roles, link, extra=(deny,)).allowed(ALICE, "red", "jobs.get")


def test_decisions_are_those_of_one_casbin_over_all_rules(roles: Roles) -> None:
    chance = random.Random(7)
    names = [f"user:{name}" for name in "abcdefgh"]
    projects = [f"p{number}" for number in range(5)]
    permissions = list(roles.permissions)
    for _ in range(6):
        links = {
            Link(chance.choice(names), role, chance.choice(projects))
            for role in ("owner", "developer", "viewer", "inference")
            for _ in range(4)
        } | {Link(chance.choice(names), "auditor", "*")}
        extra = {
            Rule(
                chance.choice([*names, "role:developer", "role:viewer"]),
                chance.choice(projects),
                *chance.choice(permissions).split("."),
                chance.choice(["allow", "deny"]),
            )
            for _ in range(25)
        }
        policy = _compiled(roles, *links, extra=tuple(extra))
        whole = enforcer(roles.model_text, [*rules.rules_of(roles), *extra], links)
        asked = [
            (
                chance.choice(names),
                chance.choice([*projects, "*", "p9"]),
                chance.choice(permissions),
            )
            for _ in range(150)
        ]
        expected = [bool(whole.enforce(who, where, *what.split("."))) for who, where, what in asked]
        assert [policy.decide(*question) for question in asked] == expected
        kept = [
            policy.allowed(
                Principal(PrincipalKind.USER, who.removeprefix("user:")),
                None if where == "*" else where,
                what,
            )
            for who, where, what in asked * 2
        ]
        assert kept == expected * 2
        assert {True, False} == set(expected)


def test_many_threads_get_the_same_answers(roles: Roles) -> None:
    links = [Link(f"user:u{number}", "developer", f"p{number}") for number in range(20)]
    policy = _compiled(roles, *links)
    wrong: list[str] = []

    def ask(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(300):
            who, where = chance.randrange(20), chance.randrange(20)
            principal = Principal(PrincipalKind.USER, f"u{who}")
            if policy.allowed(principal, f"p{where}", "jobs.create") != (who == where):
                wrong.append(f"u{who} in p{where}")

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_kept_decisions_are_bounded(roles: Roles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_DECISIONS", 10)
    policy = _compiled(roles, Link("user:alice", "developer", "red"))
    for number in range(35):
        policy.allowed(ALICE, f"p{number}", "jobs.create")
    assert len(policy._decisions) <= 10
    assert policy.allowed(ALICE, "red", "jobs.create")


def test_names_of_permissions_nobody_knows_take_no_memory(roles: Roles) -> None:
    policy = _compiled(roles)
    before = len(policy._enforcers)
    assert not any(policy.decide("user:alice", "*", f"jobs.x{number}") for number in range(50))
    assert len(policy._enforcers) == before


# --- the ways Casbin fails open -------------------------------------------------------------------


@pytest.mark.attack
def test_an_empty_policy_and_an_empty_request_mean_no(roles: Roles) -> None:
    policy = Policy(Rows(1, (), (), {}), roles)
    questions = [("", "", ""), ("", "", "."), ("", "*", "jobs.create"), ("user:alice", "*", "")]
    assert [policy.decide(*question) for question in questions] == [False] * 4
    assert [policy.allowed(who, None, "users.create") for who in (ANONYMOUS, ALICE)] == [False] * 2


@pytest.mark.attack
@pytest.mark.parametrize("effect", ["Deny", "deny ", "DENY", "", "block", "\u0430llow"])
def test_a_misspelt_effect_refuses_the_policy(roles: Roles, effect: str) -> None:
    bad = Rule("user:alice", "red", "jobs", "create", effect)
    with pytest.raises(FailedPrecondition, match="nobody gains anything"):
        _compiled(roles, Link("user:alice", "developer", "red"), extra=(bad,))


@pytest.mark.attack
@pytest.mark.parametrize(
    "bad",
    [
        Rule("", "red", "jobs", "create", "allow"),
        Rule("user:alice", "", "jobs", "create", "allow"),
        Rule("user:alice", "red", "", "create", "allow"),
        Rule("user:alice", "red", "jobs", "", "allow"),
        Rule("user:alice", "red", "jobs", None, "allow"),  # type: ignore[arg-type]  # a short row
        Rule("user:alice", "*", "jobs", "create", "allow"),
        Rule("user:alice", "red", "*", "create", "allow"),
        Rule("user:alice", "red", "jobs", "*", "allow"),
        Rule("user:alice", "red", "jobs", ".*", "allow"),
        Rule("user:alice", "red/../blue", "jobs", "create", "allow"),
        Rule("user:*", "red", "jobs", "create", "allow"),
        Rule("role:nobody-made", "*", "jobs", "create", "allow"),
        Rule("anonymous", "red", "jobs", "create", "allow"),
        Rule("alice", "red", "jobs", "create", "allow"),
    ],
)
def test_a_rule_that_is_not_exact_refuses_the_policy(roles: Roles, bad: Rule) -> None:
    with pytest.raises(FailedPrecondition, match="nobody gains anything"):
        _compiled(roles, extra=(bad,))


@pytest.mark.attack
@pytest.mark.parametrize(
    "bad",
    [
        Link("", "viewer", "red"),
        Link("user:alice", "", "red"),
        Link("user:alice", "viewer", ""),
        Link("role:viewer", "owner", "red"),
        Link("role:viewer", "owner", "*"),
        Link("user:alice", "godmode", "red"),
        Link("user:alice", "administrator", "red"),
        Link("user:alice", "node", "*"),
        Link("node:gpu-1", "administrator", "*"),
        Link("node:gpu-1", "gateway", "*"),
        Link("svc:app", "inference", "blue"),
        Link("svc:app", "auditor", "*"),
        Link("svc:other", "inference", "red"),
        Link("anonymous", "viewer", "red"),
        Link("replica:r", "viewer", "red"),
        Link("user:alice", "viewer", "re*"),
    ],
)
def test_a_link_that_must_not_be_refuses_the_policy(roles: Roles, bad: Link) -> None:
    homes = {"svc:app": "red"}
    good = Link("svc:app", "inference", "red")
    assert compile_policy(_rows(roles, good, homes=homes), roles).allowed(
        APP, "red", "endpoints.infer"
    )
    with pytest.raises(FailedPrecondition, match="nobody gains anything"):
        compile_policy(_rows(roles, good, bad, homes=homes), roles)
    with pytest.raises(InvalidInput, match="this binding is refused"):
        rules.check_link(bad, homes, roles)


@pytest.mark.attack
def test_a_subject_named_like_a_role_gets_nothing(roles: Roles) -> None:
    policy = _compiled(roles, Link("user:alice", "developer", "red"))
    with pytest.raises(InvalidInput):
        Principal(PrincipalKind.USER, "role:owner")
    with pytest.raises(InvalidInput):
        Principal(PrincipalKind.USER, "x:role:owner")
    assert not policy.decide("role:administrator", "*", "users.create")
    # Casbin itself would say yes: the guard is ours.
    whole = enforcer(roles.model_text, rules.rules_of(roles), ())
    assert whole.enforce("role:administrator", "*", "users", "create")


@pytest.mark.attack
@pytest.mark.parametrize(
    "replaced",
    [
        (
            "some(where (p.eft == allow)) && !some(where (p.eft == deny))",
            "!some(where (p.eft == deny))",
        ),
        ('r.sub != "" && r.act == p.act', "r.act == r.act || r.act == p.act"),
        ("g(r.sub, p.sub, r.dom)", "r.dom == r.dom"),
    ],
)
def test_a_model_that_lets_strangers_in_does_not_pass_the_probes(
    roles: Roles, replaced: tuple[str, str]
) -> None:
    assert replaced[0] in roles.model_text
    loose = dataclasses.replace(roles, model_text=roles.model_text.replace(*replaced))
    with pytest.raises(FailedPrecondition, match="nobody gains anything"):
        _compiled(loose)


@pytest.mark.attack
def test_nothing_can_change_an_enforcer_s_store(roles: Roles) -> None:
    made = enforcer(roles.model_text, rules.rules_of(roles), ())
    with pytest.raises(FailedPrecondition, match="change the tables"):
        made.save_policy()
    for change in ("add_policy", "remove_policy", "remove_filtered_policy"):
        with pytest.raises(FailedPrecondition, match="change the tables"):
            getattr(made.get_adapter(), change)("p", "p", ["x"])


@pytest.mark.attack
def test_one_distribution_owns_casbin() -> None:
    owners = importlib.metadata.packages_distributions()["casbin"]
    assert owners == ["pycasbin"]


def test_casbin_is_imported_in_one_place() -> None:
    root = Path(module.__file__).parents[3]
    found = {
        path.relative_to(root).as_posix()
        for path in (root / "appliance").rglob("*.py")
        if "import casbin" in path.read_text()
    }
    assert found == {"appliance/control/auth/policy.py"}


# --- the policy in force --------------------------------------------------------------------------


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
        assert rules.read(reading, roles).links == (Link("user:alice", "developer", "red"),)
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
    add_binding(state, "user:alice", "administrator", "*")
    assert store.current().allowed(ALICE, None, "users.create")
    add_binding(state, "role:viewer", "administrator", "*")
    with pytest.raises(FailedPrecondition, match="nobody gains"):
        store.current()


@pytest.mark.attack
def test_a_database_that_cannot_be_read_lets_nobody_in(state: Database, roles: Roles) -> None:
    store = PolicyStore(state, roles)
    add_binding(state, "user:alice", "administrator", "*")
    assert store.current().allowed(ALICE, None, "users.create")
    with state.write() as transaction:
        transaction.run(delete(tables.meta))
    with pytest.raises(FailedPrecondition, match="run `appliance init`"):
        store.current()


def test_machines_hold_their_roles_by_their_certificates(state: Database, roles: Roles) -> None:
    store = PolicyStore(state, roles)
    with state.write() as transaction:
        transaction.run(insert(tables.node).values(id="gpu-1", state="READY", create_time=START))
        transaction.run(insert(tables.gateway).values(id="main", state="READY", create_time=START))
        store.changed(transaction)
    policy = store.current()
    assert policy.allowed(NODE, None, "agent.connect")
    assert policy.allowed(GATEWAY, None, "routing.watch")
    assert not policy.allowed(NODE, None, "routing.watch")
    assert not policy.allowed(Principal(PrincipalKind.NODE, "gpu-2"), None, "agent.connect")
    with state.write() as transaction:
        transaction.run(update(tables.node).values(state="EVICTED"))
        store.changed(transaction)
    assert not store.current().allowed(NODE, None, "agent.connect")


def test_an_application_holds_roles_at_home(state: Database, roles: Roles) -> None:
    store = PolicyStore(state, roles)
    add_project(state, "red")
    add_application(state, "app", "red")
    add_binding(state, "svc:app", "inference", "red")
    assert store.current().allowed(APP, "red", "endpoints.infer")
    assert not store.current().allowed(APP, "red", "endpoints.create")


def test_a_policy_of_many_rules_still_decides(roles: Roles) -> None:
    names = [f"r{number}" for number in range(20)]
    words = {f"noun{chr(97 + number)}.verb": "." for number in range(20)}
    many = Roles(
        {name: Role(name, "", True, False, tuple(words)) for name in names}, words, roles.model_text
    )
    policy = compile_policy(_rows(many, Link("user:alice", "r7", "red")), many)
    assert policy.allowed(ALICE, "red", "nouna.verb")
    assert not policy.allowed(BOB, "red", "nouna.verb")
