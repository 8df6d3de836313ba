"""Who may do what. The ways Casbin fails open are each tried here, and lead nowhere."""

import dataclasses
import importlib.metadata
import random
import threading
from pathlib import Path

import pytest

from appliance.control.auth import engine as module
from appliance.control.auth import rules
from appliance.control.auth.engine import IndexRoles, PolicyEngine, enforcer
from appliance.control.auth.index import Index
from appliance.control.auth.policy import Policy, compile_policy
from appliance.control.auth.roles import Role, Roles
from appliance.control.auth.rules import PolicyRows, PolicyRule, RoleLink
from appliance.control.auth.scopes import EVERYWHERE, PLATFORM
from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.core.identity import ANONYMOUS, Principal, PrincipalKind, parse_subject
from tests.fakes.plain_casbin import plain_casbin

ALICE = Principal(PrincipalKind.USER, "alice")
BOB = Principal(PrincipalKind.USER, "bob")
APP = Principal(PrincipalKind.SERVICE_ACCOUNT, "app")
NODE = Principal(PrincipalKind.NODE, "gpu-1")
GATEWAY = Principal(PrincipalKind.GATEWAY, "main")


def _rows(
    roles: Roles,
    *links: RoleLink,
    extra: tuple[PolicyRule, ...] = (),
    homes: dict[str, str] | None = None,
) -> PolicyRows:
    return PolicyRows(1, (*rules.rules_of(roles), *extra), links, homes or {})


def _compiled(roles: Roles, *links: RoleLink, extra: tuple[PolicyRule, ...] = ()) -> Policy:
    return compile_policy(_rows(roles, *links, extra=extra), roles)


def test_a_role_in_a_project_holds_there_alone(roles: Roles) -> None:
    policy = _compiled(roles, RoleLink("user:alice", "developer", "red"))
    assert [
        policy.allowed(ALICE, where, "jobs.create") for where in ("red", "blue", EVERYWHERE)
    ] == [
        True,
        False,
        False,
    ]
    assert not policy.allowed(ALICE, "red", "bindings.create")
    assert not policy.allowed(BOB, "red", "jobs.create")


def test_a_role_in_all_projects_holds_in_each_and_not_on_the_platform(roles: Roles) -> None:
    policy = _compiled(roles, RoleLink("user:alice", "administrator", "*"))
    assert policy.allowed(ALICE, EVERYWHERE, "jobs.create")
    assert policy.allowed(ALICE, "red", "jobs.create")
    assert policy.allowed(ALICE, "red", "bindings.create")
    assert not any(policy.allowed(ALICE, PLATFORM, what) for what in roles.permissions)
    # Nor where such a thing means nothing.
    assert not policy.allowed(ALICE, EVERYWHERE, "users.create")


def test_a_role_on_the_platform_holds_in_no_project(roles: Roles) -> None:
    policy = _compiled(roles, RoleLink("user:alice", "administrator", "/platform"))
    assert policy.allowed(ALICE, PLATFORM, "users.create")
    assert policy.allowed(ALICE, PLATFORM, "bindings.create")
    assert not policy.allowed(ALICE, PLATFORM, "jobs.create")
    assert not policy.allowed(ALICE, PLATFORM, "agent.connect")
    assert not any(
        policy.allowed(ALICE, where, what)
        for where in ("red", EVERYWHERE)
        for what in roles.permissions
    )


def test_what_a_principal_holds(roles: Roles) -> None:
    policy = _compiled(
        roles,
        RoleLink("user:alice", "viewer", "red"),
        RoleLink("user:alice", "auditor", "/platform"),
    )
    assert policy.roles_of(ALICE) == [("auditor", "/platform"), ("viewer", "red")]
    assert [policy.holds_any_role(ALICE, where) for where in (PLATFORM, EVERYWHERE, "blue")] == [
        True,
        False,
        False,
    ]
    assert policy.roles_of(BOB) == []
    policy = _compiled(roles, RoleLink("user:alice", "viewer", "red"))
    assert [policy.holds_any_role(ALICE, where) for where in ("red", "blue", PLATFORM)] == [
        True,
        False,
        False,
    ]


def test_deny_wins(roles: Roles) -> None:
    link = RoleLink("user:alice", "developer", "red")
    deny = PolicyRule("user:alice", "red", "jobs", "create", "deny")
    assert not _compiled(roles, link, extra=(deny,)).allowed(ALICE, "red", "jobs.create")
    assert _compiled(roles, link, extra=(deny,)).allowed(ALICE, "red", "jobs.get")


def _random_policy(chance: random.Random, roles: Roles) -> tuple[set[RoleLink], set[PolicyRule]]:
    """Links in every kind of scope, and rules that allow and deny in projects."""
    names = [f"user:{name}" for name in "abcdefgh"]
    places = [*(f"p{number}" for number in range(5)), EVERYWHERE, PLATFORM]
    links = {
        RoleLink(chance.choice(names), role, chance.choice([d for d in places if made.fits(d)]))
        for role, made in roles.roles.items()
        if made.assignable
        for _ in range(3)
    }
    inside = [name for name in roles.permissions if roles.is_decided(name, "p0")]
    extra = {
        PolicyRule(
            chance.choice([*names, "role:developer", "role:viewer"]),
            f"p{chance.randrange(5)}",
            *chance.choice(inside).split("."),
            chance.choice(["allow", "deny"]),
        )
        for _ in range(25)
    }
    return links, extra


@pytest.mark.timeout(300)
def test_ten_thousand_decisions_are_those_of_plain_casbin(roles: Roles) -> None:
    chance = random.Random(7)
    names = [f"user:{name}" for name in "abcdefghi"]
    places = [*(f"p{number}" for number in range(6)), EVERYWHERE, PLATFORM]
    permissions = list(roles.permissions)
    said: list[bool] = []
    for number in range(8):
        links, extra = _random_policy(chance, roles)
        extra = extra if number % 2 else set()
        policy = _compiled(roles, *links, extra=tuple(extra))
        whole = plain_casbin(roles.model_text, [*rules.rules_of(roles), *extra], links)
        asked = [
            (chance.choice(names), chance.choice(places), chance.choice(permissions))
            for _ in range(1250)
        ]
        expected = [bool(whole.enforce(who, where, *what.split("."))) for who, where, what in asked]
        assert [policy.decide(*question) for question in asked[:100]] == expected[:100]
        kept = [policy.allowed(parse_subject(who), where, what) for who, where, what in asked]
        assert kept == expected
        said += expected
    assert (len(said), 500 < sum(said) < 9_500) == (10_000, True)


def test_a_change_decides_as_a_policy_made_anew(roles: Roles) -> None:
    chance = random.Random(11)
    links, extra = _random_policy(chance, roles)
    policy = _compiled(roles, *links, extra=tuple(extra))
    places = [*(f"p{number}" for number in range(6)), EVERYWHERE, PLATFORM]
    for _ in range(12):
        link = chance.choice([*links, *_random_policy(chance, roles)[0]])
        policy = _changed(policy, link, give=link not in links)
        links ^= {link}
        anew = _compiled(roles, *links, extra=tuple(extra))
        assert policy.index.is_same_as(anew.index)
        for _ in range(50):
            who, where = parse_subject(f"user:{chance.choice('abcdefghi')}"), chance.choice(places)
            what = chance.choice(list(roles.permissions))
            assert policy.allowed(who, where, what) == anew.allowed(who, where, what)


def _changed(policy: Policy, link: RoleLink, *, give: bool) -> Policy:
    index = policy.index.given(link) if give else policy.index.taken(link)
    return Policy(policy.version + 1, index, policy.engine)


def test_an_index_is_never_changed(roles: Roles) -> None:
    link = RoleLink("user:alice", "viewer", "red")
    before = Index.of([link])
    after = before.given(RoleLink("user:alice", "owner", "red")).taken(link)
    assert before.is_same_as(Index.of([link]))
    assert after.is_same_as(Index.of([RoleLink("user:alice", "owner", "red")]))
    assert before.held("user:bob") == {}
    assert after.taken(RoleLink("user:alice", "owner", "red")).is_same_as(Index.of([]))
    assert before.taken(RoleLink("user:bob", "owner", "red")).is_same_as(before)
    assert not before.is_same_as(after)


def test_many_threads_get_the_same_answers(roles: Roles) -> None:
    links = [RoleLink(f"user:u{number}", "developer", f"p{number}") for number in range(20)]
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
    policy = _compiled(roles, RoleLink("user:alice", "developer", "red"))
    for name in roles.permissions:
        policy.allowed(ALICE, "red", name)
    assert len(list(policy.engine.kept())) <= 10
    assert policy.allowed(ALICE, "red", "jobs.create")


def test_kept_decisions_do_not_grow_with_people_and_projects(roles: Roles) -> None:
    links = [RoleLink(f"user:u{number}", "developer", f"p{number}") for number in range(50)]
    policy = _compiled(roles, *links)
    for number in range(50):
        who = Principal(PrincipalKind.USER, f"u{number}")
        assert policy.allowed(who, f"p{number}", "jobs.create")
        assert not policy.allowed(who, f"p{number + 1}", "jobs.create")
    assert len(list(policy.engine.kept())) == 2


def test_names_of_permissions_nobody_knows_take_no_memory(roles: Roles) -> None:
    policy = _compiled(roles)
    before = len(policy.engine._enforcers)
    assert not any(policy.decide("user:alice", "*", f"jobs.x{number}") for number in range(50))
    assert len(policy.engine._enforcers) == before


# --- the ways Casbin fails open -------------------------------------------------------------------


@pytest.mark.attack
def test_an_empty_policy_and_an_empty_request_mean_no(roles: Roles) -> None:
    policy = Policy(1, Index.of([]), PolicyEngine((), roles.model_text))
    questions = [("", "", ""), ("", "", "."), ("", "*", "jobs.create"), ("user:alice", "*", "")]
    assert [policy.decide(*question) for question in questions] == [False] * 4
    assert [policy.allowed(who, PLATFORM, "users.create") for who in (ANONYMOUS, ALICE)] == [
        False
    ] * 2


@pytest.mark.attack
@pytest.mark.parametrize("effect", ["Deny", "deny ", "DENY", "", "block", "\u0430llow"])
def test_a_misspelt_effect_refuses_the_policy(roles: Roles, effect: str) -> None:
    bad = PolicyRule("user:alice", "red", "jobs", "create", effect)
    with pytest.raises(FailedPrecondition, match="nobody gains anything"):
        _compiled(roles, RoleLink("user:alice", "developer", "red"), extra=(bad,))


@pytest.mark.attack
@pytest.mark.parametrize(
    "bad",
    [
        PolicyRule("", "red", "jobs", "create", "allow"),
        PolicyRule("user:alice", "", "jobs", "create", "allow"),
        PolicyRule("user:alice", "red", "", "create", "allow"),
        PolicyRule("user:alice", "red", "jobs", "", "allow"),
        PolicyRule("user:alice", "red", "jobs", None, "allow"),  # type: ignore[arg-type]  # a short row
        PolicyRule("user:alice", "*", "jobs", "create", "allow"),
        PolicyRule("user:alice", "/platform", "users", "create", "allow"),
        PolicyRule("user:alice", "red", "users", "create", "allow"),
        PolicyRule("role:owner", "*", "users", "create", "allow"),
        PolicyRule("role:owner", "/platform", "jobs", "create", "allow"),
        PolicyRule("role:owner", "platform", "users", "create", "allow"),
        PolicyRule("user:alice", "red", "*", "create", "allow"),
        PolicyRule("user:alice", "red", "jobs", "*", "allow"),
        PolicyRule("user:alice", "red", "jobs", ".*", "allow"),
        PolicyRule("user:alice", "red/../blue", "jobs", "create", "allow"),
        PolicyRule("user:*", "red", "jobs", "create", "allow"),
        PolicyRule("role:nobody-made", "*", "jobs", "create", "allow"),
        PolicyRule("anonymous", "red", "jobs", "create", "allow"),
        PolicyRule("alice", "red", "jobs", "create", "allow"),
    ],
)
def test_a_rule_that_is_not_exact_refuses_the_policy(roles: Roles, bad: PolicyRule) -> None:
    with pytest.raises(FailedPrecondition, match="nobody gains anything"):
        _compiled(roles, extra=(bad,))


@pytest.mark.attack
@pytest.mark.parametrize(
    "bad",
    [
        RoleLink("", "viewer", "red"),
        RoleLink("user:alice", "", "red"),
        RoleLink("user:alice", "viewer", ""),
        RoleLink("role:viewer", "owner", "red"),
        RoleLink("role:viewer", "owner", "*"),
        RoleLink("user:alice", "godmode", "red"),
        RoleLink("user:alice", "administrator", "red"),
        RoleLink("user:alice", "owner", "/platform"),
        RoleLink("user:alice", "owner", "/"),
        RoleLink("user:alice", "node", "/platform"),
        RoleLink("node:gpu-1", "administrator", "/platform"),
        RoleLink("node:gpu-1", "node", "*"),
        RoleLink("node:gpu-1", "gateway", "/platform"),
        RoleLink("svc:app", "inference", "blue"),
        RoleLink("svc:app", "auditor", "/platform"),
        RoleLink("svc:app", "inference", "*"),
        RoleLink("svc:other", "inference", "red"),
        RoleLink("anonymous", "viewer", "red"),
        RoleLink("replica:r", "viewer", "red"),
        RoleLink("user:alice", "viewer", "re*"),
    ],
)
def test_a_link_that_must_not_be_refuses_the_policy(roles: Roles, bad: RoleLink) -> None:
    homes = {"svc:app": "red"}
    good = RoleLink("svc:app", "inference", "red")
    assert compile_policy(_rows(roles, good, homes=homes), roles).allowed(
        APP, "red", "endpoints.infer"
    )
    with pytest.raises(FailedPrecondition, match="nobody gains anything"):
        compile_policy(_rows(roles, good, bad, homes=homes), roles)
    with pytest.raises(InvalidInput, match="this binding is refused"):
        rules.check_link(bad, homes, roles)


@pytest.mark.attack
def test_a_subject_named_like_a_role_gets_nothing(roles: Roles) -> None:
    policy = _compiled(roles, RoleLink("user:alice", "developer", "red"))
    with pytest.raises(InvalidInput):
        Principal(PrincipalKind.USER, "role:owner")
    with pytest.raises(InvalidInput):
        Principal(PrincipalKind.USER, "x:role:owner")
    assert not policy.decide("role:administrator", PLATFORM, "users.create")
    # Casbin itself would say yes: the guard is ours.
    whole = plain_casbin(roles.model_text, rules.rules_of(roles), ())
    assert whole.enforce("role:administrator", PLATFORM, "users", "create")


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
        ('(r.dom != "/platform" && g(r.sub, p.sub, "*"))', 'g(r.sub, p.sub, "*")'),
        ('g(r.sub, p.sub, "*")', 'g(r.sub, p.sub, "0")'),
        ("g(r.sub, p.sub, r.dom)", 'g(r.sub, p.sub, "/platform")'),
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
    held = IndexRoles(Index.of([RoleLink("user:alice", "viewer", "red")]))
    made = enforcer(roles.model_text, rules.rules_of(roles), held)
    with pytest.raises(FailedPrecondition, match="change the tables"):
        made.save_policy()
    for change in ("add_policy", "remove_policy", "remove_filtered_policy"):
        with pytest.raises(FailedPrecondition, match="change the tables"):
            getattr(made.get_adapter(), change)("p", "p", ["x"])
    for change in ("add_link", "delete_link"):
        with pytest.raises(FailedPrecondition, match="change the tables"):
            getattr(made.get_role_manager(), change)("user:bob", "role:owner", "red")
    # What Casbin keeps in its own tables is not what it asks.
    made.add_grouping_policy("user:bob", "role:owner", "red")
    with pytest.raises(FailedPrecondition, match="change the tables"):
        made.build_role_links()
    assert not made.enforce("user:bob", "red", "bindings", "create")


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
    assert found == {"appliance/control/auth/engine.py"}


def test_a_policy_of_many_rules_still_decides(roles: Roles) -> None:
    names = [f"r{number}" for number in range(20)]
    words = {f"noun{chr(97 + number)}.verb": "." for number in range(20)}
    many = Roles(
        {name: Role(name, "", True, frozenset({"project"}), tuple(words)) for name in names},
        words,
        dict.fromkeys(words, frozenset({"projects"})),
        roles.model_text,
    )
    policy = compile_policy(_rows(many, RoleLink("user:alice", "r7", "red")), many)
    assert policy.allowed(ALICE, "red", "nouna.verb")
    assert not policy.allowed(BOB, "red", "nouna.verb")
