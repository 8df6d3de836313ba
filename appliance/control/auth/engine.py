"""Casbin over the built-in rules, with who holds what read from an index. The only home of casbin.

Rules kept here:
* Casbin decides. Because every comparison is exact, only rules of the asked permission can match;
  each permission therefore has an enforcer of its own with these rules alone;
* Casbin's own graph of roles is never filled, and none of its calls that change something is used:
  it asks a role manager that reads an immutable index, and refuses everything else;
* a decision depends on the roles that are held in the asked scope and in all projects, and on
  nothing else of a caller, unless a rule names a subject or a project. Decisions are kept by that,
  so what is kept does not grow with people and projects.

The attacks: the ways Casbin fails open (an empty policy, empty strings, a subject called `role:…`,
a graph that was changed in memory and not in the database). Called by the policy.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import casbin

from appliance.control.auth.index import Index
from appliance.control.auth.rules import ROLE_PREFIX, PolicyRule, RoleLink
from appliance.control.auth.scopes import EVERYWHERE, PLATFORM
from appliance.core.errors import FailedPrecondition

KEPT_DECISIONS = 65_536
SOMEBODY = "user:0"
SOMEWHERE, ELSEWHERE = "0", "1"
"""A person and two projects that cannot be: the ids of new ones begin with a letter."""


def _refuse(*_: object) -> None:
    raise FailedPrecondition("a policy in force is never changed; change the tables instead")


class _ReadOnly(casbin.persist.Adapter):  # type: ignore[misc]  # casbin is untyped
    """Gives an enforcer its rules once and refuses to store anything."""

    def __init__(self, rules: Iterable[PolicyRule]) -> None:
        self._rules = rules

    def load_policy(self, model: casbin.Model) -> None:
        """Put the rules where Casbin keeps them; no text is parsed on the way."""
        model["p"]["p"].policy = [
            [r.subject, r.domain, r.noun, r.verb, r.effect] for r in self._rules
        ]

    save_policy = add_policy = remove_policy = remove_filtered_policy = _refuse


class IndexRoles(casbin.rbac.RoleManager):  # type: ignore[misc]  # casbin is untyped
    """Answers Casbin's `g` from an index and refuses to be changed."""

    def __init__(self, index: Index) -> None:
        self.index = index

    def has_link(self, name1: str, name2: str, *domain: str) -> bool:
        """Whether a subject holds a role (`role:…`) in a domain."""
        (where,) = domain
        prefix, role = name2[: len(ROLE_PREFIX)], name2[len(ROLE_PREFIX) :]
        return prefix == ROLE_PREFIX and role in self.index.roles(name1, where)

    add_link = delete_link = clear = get_roles = get_users = get_domains = _refuse  # type: ignore[assignment]
    get_all_domains = add_matching_func = add_domain_matching_func = _refuse

    def print_roles(self) -> None:
        """Nothing: who holds what is not for a log."""


def enforcer(model_text: str, rules: Iterable[PolicyRule], roles: IndexRoles) -> casbin.Enforcer:
    """A Casbin enforcer over exactly these rules and roles, which nothing can change or store."""
    model = casbin.Model()
    model.load_model_from_text(model_text)
    made = casbin.Enforcer(model, _ReadOnly(rules))
    made.enable_auto_save(False)
    made.enable_auto_build_role_links(False)
    made.set_role_manager(roles)
    made.model["g"]["g"].rm = roles
    return made


@dataclass(frozen=True)
class PolicyQuestion:
    """All that a decision depends on. `subject` and `domain` are empty unless a rule names them."""

    subject: str
    domain: str
    here: frozenset[str]
    everywhere: frozenset[str]
    permission: str


class PolicyEngine:
    """Decides by rules. Made once; the index comes with each question."""

    def __init__(self, rules: Iterable[PolicyRule], model_text: str) -> None:
        self._model_text = model_text
        self._lock = threading.Lock()
        self._roles = IndexRoles(Index.of(()))
        self._rules: dict[tuple[str, str], list[PolicyRule]] = {}
        self._subjects: set[str] = set()
        self._domains = {PLATFORM, EVERYWHERE}
        for rule in rules:
            self._rules.setdefault((rule.noun, rule.verb), []).append(rule)
            self._domains.add(rule.domain)
            if not rule.subject.startswith(ROLE_PREFIX):
                self._subjects.add(rule.subject)
        self.named_projects = frozenset(self._domains - {PLATFORM, EVERYWHERE})
        self._enforcers: dict[tuple[str, str], casbin.Enforcer] = {}
        self._decisions: dict[PolicyQuestion, bool] = {}

    def allowed(self, index: Index, subject: str, domain: str, permission: str) -> bool:
        """Whether a subject may; kept."""
        held = index.held(subject)
        question = PolicyQuestion(
            subject if subject in self._subjects else "",
            domain if domain in self._domains else "",
            held.get(domain, frozenset()),
            held.get(EVERYWHERE, frozenset()),
            permission,
        )
        decision = self._decisions.get(question)
        if decision is None:
            decision = self.decide(index, subject, domain, permission)
            if len(self._decisions) >= KEPT_DECISIONS:
                self._decisions.clear()
            self._decisions[question] = decision
        return decision

    def decide(self, index: Index, subject: str, domain: str, permission: str) -> bool:
        """Ask Casbin."""
        if subject.startswith(ROLE_PREFIX):
            return False  # To Casbin the name of a role is as good as holding it.
        noun, _, verb = permission.partition(".")
        # Casbin builds parts of an enforcer while it is asked, so one question at a time.
        with self._lock:
            self._roles.index = index
            return bool(self._enforcer(noun, verb).enforce(subject, domain, noun, verb))

    def kept(self) -> Iterator[tuple[PolicyQuestion, bool]]:
        """What was decided, for a comparison."""
        yield from list(self._decisions.items())

    def answer(self, question: PolicyQuestion) -> bool:
        """Decide a kept question again."""
        subject, domain = question.subject or SOMEBODY, question.domain or SOMEWHERE
        links = [RoleLink(subject, role, domain) for role in question.here]
        links += [RoleLink(subject, role, EVERYWHERE) for role in question.everywhere]
        return self.decide(Index.of(links), subject, domain, question.permission)

    def _enforcer(self, noun: str, verb: str) -> casbin.Enforcer:
        # Permissions without rules share one enforcer, so that invented names take no memory.
        key = (noun, verb) if (noun, verb) in self._rules else ("", "")
        made = self._enforcers.get(key)
        if made is None:
            made = enforcer(self._model_text, self._rules.get(key, ()), self._roles)
            self._enforcers[key] = made
        return made
