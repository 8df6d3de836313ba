"""Who may do what: Casbin, compiled once per version of the policy. The only home of casbin.

Rules kept here:
* the tables are the truth. A policy is made from rows that `rules.check` accepted, is never changed
  afterwards, and replaces the one before in a single assignment. Casbin's own mutating calls are
  not used: they change memory before the database, and a failed write would leave access open;
* Casbin decides. Because every comparison is exact, only rules of the asked permission can match;
  each permission therefore has an enforcer of its own with these rules alone, and all share one
  graph of roles. That turns a scan over every rule into a look at a handful. Decisions are kept;
* a policy that fails a probe (the empty request, the anonymous caller, a subject named like a role)
  is not used; when rows cannot be read or are refused, the answer is an error, never the old yes.

The attacks: the ways Casbin fails open (an empty policy, empty strings, a misspelt effect,
patterns, a subject called `role:…`, a database error in the middle of a change). Called by the gate
and services.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import casbin

from appliance.control.auth import rules
from appliance.control.auth.roles import Roles
from appliance.control.auth.rules import EVERYWHERE, ROLE_PREFIX, Link, Rows, Rule
from appliance.control.store.database import Database, Transaction
from appliance.core.errors import FailedPrecondition
from appliance.core.identity import ANONYMOUS, Principal, PrincipalKind

KEPT_DECISIONS = 65_536


class _ReadOnly(casbin.persist.Adapter):  # type: ignore[misc]  # casbin is untyped
    """Gives an enforcer its rows once and refuses to store anything."""

    def __init__(self, rules: Iterable[Rule], links: Iterable[Link]) -> None:
        self._rules, self._links = rules, links

    def load_policy(self, model: casbin.Model) -> None:
        """Put the rows where Casbin keeps them; no text is parsed on the way."""
        model.add_policies(
            "p", "p", [[r.subject, r.domain, r.noun, r.verb, r.effect] for r in self._rules]
        )
        model.add_policies(
            "g", "g", [[k.subject, ROLE_PREFIX + k.role, k.domain] for k in self._links]
        )

    def save_policy(self, *_: object) -> None:
        """Refuse."""
        raise FailedPrecondition("a policy in force is never changed; change the tables instead")

    add_policy = remove_policy = remove_filtered_policy = save_policy


def enforcer(model_text: str, rules: Iterable[Rule], links: Iterable[Link]) -> casbin.Enforcer:
    """A Casbin enforcer over exactly these rows, which nothing can change or store."""
    model = casbin.Model()
    model.load_model_from_text(model_text)
    made = casbin.Enforcer(model, _ReadOnly(rules, links))
    made.enable_auto_save(False)
    made.enable_auto_build_role_links(False)
    return made


class Policy:
    """One version of the policy, immutable. Made by `compile_policy`."""

    def __init__(self, rows: Rows, roles: Roles) -> None:
        self.version = rows.version
        self._model_text = roles.model_text
        self._lock = threading.Lock()
        self._decisions: dict[tuple[Principal, str, str], bool] = {}
        self._rules: dict[tuple[str, str], list[Rule]] = {}
        for rule in rows.rules:
            self._rules.setdefault((rule.noun, rule.verb), []).append(rule)
        self._held: dict[str, list[tuple[str, str]]] = {}
        for link in rows.links:
            self._held.setdefault(link.subject, []).append((link.role, link.domain))
        # Its graph of roles is shared by the enforcers of the permissions.
        self._graph = enforcer(self._model_text, (), rows.links).model["g"]["g"].rm
        self._enforcers: dict[tuple[str, str], casbin.Enforcer] = {}

    def allowed(self, principal: Principal, project: str | None, permission: str) -> bool:
        """Whether `principal` may use `permission` in a project, or on the appliance when None."""
        key = (principal, EVERYWHERE if project is None else project, permission)
        decision = self._decisions.get(key)
        if decision is None:
            decision = self.decide(principal.subject, key[1], permission)
            if len(self._decisions) >= KEPT_DECISIONS:
                self._decisions.clear()
            self._decisions[key] = decision
        return decision

    def decide(self, subject: str, domain: str, permission: str) -> bool:
        """Ask Casbin. For `allowed`, the probes and tests; other code has principals."""
        if subject.startswith(ROLE_PREFIX):
            return False  # To Casbin the name of a role is as good as holding it.
        noun, _, verb = permission.partition(".")
        # Casbin builds parts of its graph while it is asked, so one question at a time.
        with self._lock:
            return bool(self._enforcer(noun, verb).enforce(subject, domain, noun, verb))

    def _enforcer(self, noun: str, verb: str) -> casbin.Enforcer:
        # Permissions without rules share one enforcer, so that invented names take no memory.
        key = (noun, verb) if (noun, verb) in self._rules else ("", "")
        made = self._enforcers.get(key)
        if made is None:
            made = enforcer(self._model_text, self._rules.get(key, ()), ())
            made.model["g"]["g"].rm = self._graph
            self._enforcers[key] = made
        return made

    def holds_any_role(self, principal: Principal, project: str | None) -> bool:
        """Whether `principal` holds some role in the project or on the whole appliance."""
        return any(
            domain in {EVERYWHERE, project} for _, domain in self._held.get(principal.subject, ())
        )

    def roles_of(self, principal: Principal) -> list[tuple[str, str]]:
        """The (role, domain) pairs a principal holds, sorted; domain `*` is the whole appliance."""
        return sorted(self._held.get(principal.subject, ()))


def compile_policy(rows: Rows, roles: Roles) -> Policy:
    """Check the rows, build a policy, probe it. Raises FailedPrecondition instead of a bad one."""
    rules.check(rows, roles)
    policy = Policy(rows, roles)
    nobody = Principal(PrincipalKind.USER, "0")  # an id that no person can have
    strangers = (
        "",
        ANONYMOUS.subject,
        nobody.subject,
        *(ROLE_PREFIX + role for role in roles.roles),
    )
    probes = [("", "", ""), ("", "", ".")]
    probes += [(who, EVERYWHERE, what) for who in strangers for what in roles.permissions]
    for probe in probes:
        if policy.decide(*probe):
            raise FailedPrecondition(
                f"the policy is refused, nobody gains anything: it lets {probe} through"
            )
    return policy


class PolicyStore:
    """The policy in force, always the one of the version in the database."""

    def __init__(self, database: Database, roles: Roles) -> None:
        self.roles = roles
        self._database = database
        self._policy: Policy | None = None

    def current(self) -> Policy:
        """The policy of the database's version; made anew when that has changed.

        Raises FailedPrecondition or Unavailable when it cannot be made; then nobody may do
        anything.
        """
        with self._database.read() as state:
            policy = self._policy
            if policy is not None and policy.version == rules.version_of(state):
                return policy
            rows = rules.read(state, self.roles)
        policy = compile_policy(rows, self.roles)
        self._policy = policy
        return policy

    def changed(self, transaction: Transaction) -> None:
        """Call last in a transaction that changed who may do what.

        Raises the version and makes the new policy from the transaction's own rows: one that is
        refused undoes the change. It is in force before the transaction's caller goes on.
        """
        transaction.change_policy()
        policy = compile_policy(rules.read(transaction, self.roles), self.roles)
        transaction.after_commit(lambda: self._swap(policy))

    def _swap(self, policy: Policy) -> None:
        # Should an older one arrive later, its version gives it away in `current`.
        self._policy = policy
