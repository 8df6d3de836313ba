"""Who may do what: the policy in force, always that of the version in the database.

Rules kept here:
* the tables are the truth. A policy is made from rows that `rules.check` accepted, is never changed
  afterwards, and replaces the one before in a single assignment;
* a change of one binding makes the next policy from the one before and that binding alone, after
  the same checks; its cost does not depend on how many bindings there are. It is in force before
  the transaction's caller goes on and before the next transaction begins;
* whatever else changed the tables makes the whole policy anew;
* each change is followed by a cross-check in the background: the whole policy is made anew from the
  rows, probed, and compared with the one in force. If they differ, nobody may do anything;
* a policy that fails a probe (the empty request, the anonymous caller, a subject named like a role,
  a role that reaches beyond its scope) is not used; when rows cannot be read or are refused, the
  answer is an error, never the old yes.

The attacks: a right that outlives its binding, a database error in the middle of a change, rows
written past the checks. Called by the gate and services; Casbin is in `engine`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from appliance.control.auth import rules
from appliance.control.auth.engine import ELSEWHERE, SOMEBODY, SOMEWHERE, PolicyEngine
from appliance.control.auth.index import Held, Index
from appliance.control.auth.pacing import Pace, at_once, paced
from appliance.control.auth.roles import Roles
from appliance.control.auth.rules import ROLE_PREFIX, PolicyRows, RoleLink
from appliance.control.auth.scopes import EVERYWHERE, PLATFORM
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core.errors import ApplianceError, Exhausted, FailedPrecondition, Unavailable
from appliance.core.identity import ANONYMOUS, Principal

logger = logging.getLogger(__name__)

_REFUSED = "the policy is refused, nobody gains anything"


class Policy:
    """One version of the policy, immutable. Made by `compile_policy`, for changes by the store."""

    def __init__(self, version: int, index: Index, engine: PolicyEngine) -> None:
        self.version = version
        self.index = index
        self.engine = engine

    def allowed(self, principal: Principal, domain: str, permission: str) -> bool:
        """Whether `principal` may use `permission` in a domain: a project's id, or of `scopes`."""
        return self.engine.allowed(self.index, principal.subject, domain, permission)

    def decide(self, subject: str, domain: str, permission: str) -> bool:
        """Ask Casbin. For the probes and tests; other code has principals."""
        return self.engine.decide(self.index, subject, domain, permission)

    def holds_any_role(self, principal: Principal, domain: str) -> bool:
        """Whether `principal` holds some role in a domain; in a project also by all projects."""
        held = self.held(principal)
        return domain in held or (domain != PLATFORM and EVERYWHERE in held)

    def held(self, principal: Principal) -> Held:
        """The roles of a principal by domain. The same object while nothing of it changes."""
        return self.index.held(principal.subject)

    def places(self, principal: Principal) -> list[str]:
        """The projects, and all projects, in which a principal may be judged differently; sorted.

        Those of its roles and, as long as it has any, those that rules name.
        """
        held = self.held(principal).keys() - {PLATFORM}
        return sorted(held | self.engine.named_projects) if held else []

    def roles_of(self, principal: Principal) -> list[tuple[str, str]]:
        """The (role, domain) pairs a principal holds, sorted."""
        return sorted(
            (role, domain) for domain, roles in self.held(principal).items() for role in roles
        )


def compile_policy(rows: PolicyRows, roles: Roles, pace: Pace = at_once) -> Policy:
    """Check the rows, build a policy, probe it. Raises FailedPrecondition instead of a bad one."""
    rules.check(rows, roles, pace)
    index = Index.of(rows.links, pace)
    policy = Policy(rows.version, index, PolicyEngine(rows.rules, roles.model_text))
    probes = [(policy.index, *probe) for probe in _strangers(roles)]
    probes += [(index, SOMEBODY, *probe) for index, probe in _reaching(roles)]
    for held, *probe in pace(probes):
        if policy.engine.decide(held, *probe):
            raise FailedPrecondition(f"{_REFUSED}: it lets {probe} through")
    return policy


def _strangers(roles: Roles) -> Iterable[tuple[str, str, str]]:
    """Questions about nobody: the empty request, the anonymous caller, names of roles."""
    yield from (("", "", ""), ("", "", "."))
    for who in ("", ANONYMOUS.subject, SOMEBODY, *(ROLE_PREFIX + role for role in roles.roles)):
        for where in (PLATFORM, EVERYWHERE):
            yield from ((who, where, what) for what in roles.permissions)


def _reaching(roles: Roles) -> Iterable[tuple[Index, tuple[str, str]]]:
    """Questions about roles where they do not hold: on the platform, in other projects."""
    wide = next((role.id for role in roles.roles.values() if role.fits(EVERYWHERE)), "")
    others = {
        PLATFORM: (EVERYWHERE, SOMEWHERE),
        EVERYWHERE: (PLATFORM,),
        SOMEWHERE: (PLATFORM, EVERYWHERE, ELSEWHERE),
    }
    for held, found in others.items() if wide else ():
        index = Index.of([RoleLink(SOMEBODY, wide, held)])
        for asked in found:
            yield from ((index, (asked, what)) for what in roles.roles[wide].permissions)


class PolicyStore:
    """The policy in force."""

    def __init__(self, database: Database, roles: Roles) -> None:
        self.roles = roles
        self._database = database
        self._building = threading.Lock()
        self._policy: Policy | None = None
        self._pending: tuple[Transaction, Policy] | None = None
        self._broken: ApplianceError | None = None
        self._checked = 0

    def current(self) -> Policy:
        """The policy of the database's version; made anew when somebody else has changed that.

        Raises FailedPrecondition or Unavailable when it cannot be made; then nobody may do
        anything.
        """
        policy = self._of_database()
        if policy is None:
            # Perhaps a change of ours was seen between its commit and its policy.
            self._database.wait_until_published()
            policy = self._of_database()
        return policy or self._rebuild()

    @property
    def trouble(self) -> str:
        """Why nobody may do anything, as a sentence; empty while the policy was found right."""
        broken = self._broken
        return broken.message if broken is not None else ""

    def after_granting(self, transaction: Transaction, *links: RoleLink) -> None:
        """Call last in a transaction that gave roles: in force before its caller goes on."""
        self._change(transaction, links, ())

    def after_revoking(self, transaction: Transaction, *links: RoleLink) -> None:
        """Call last in a transaction that took roles away."""
        self._change(transaction, (), links)

    def changed(self, transaction: Transaction) -> None:
        """Call last in a transaction that changed who may do what in any other way.

        Makes the new policy from the transaction's own rows: one that is refused undoes the change.
        """
        transaction.change_policy()
        self._prepare(transaction, self._read(transaction))

    def cross_check(self) -> bool:
        """Make the policy anew from the rows, and refuse everything if it is not that in force.

        Returns whether the two were compared: not when this version was before, nor when a change
        was being committed, after which this is called again. For the background: it reads all, and
        lets others go first.
        """
        try:
            with self._database.read() as state:
                version, policy = rules.version_of(state), self._policy
                if policy is None or policy.version != version or version == self._checked:
                    return False
                rows = rules.read(state, self.roles, paced)
            _compare(policy, compile_policy(rows, self.roles, paced))
        except (Unavailable, Exhausted):
            raise  # It says nothing about the policy: the next change is followed.
        except ApplianceError as error:
            logger.critical("nobody may do anything: %s", error)
            self._broken = FailedPrecondition(
                f"{error}. Nobody may do anything until the tables are right and the control plane "
                "is started again"
            )
        self._checked = version
        return True

    def _of_database(self) -> Policy | None:
        """The policy in force, if it is of the database's version."""
        if self._broken is not None:
            raise self._broken
        with self._database.read() as state:
            # In this order: a policy is never newer than the version that is read after it.
            policy, version = self._policy, rules.version_of(state)
        return policy if policy is not None and policy.version == version else None

    def _rebuild(self) -> Policy:
        with self._building:
            policy = self._of_database()
            if policy is None:
                with self._database.read() as state:
                    policy = self._read(state)
                self._policy = policy
            return policy

    def _read(self, state: Reading) -> Policy:
        return compile_policy(rules.read(state, self.roles), self.roles)

    def _change(
        self, transaction: Transaction, given: Iterable[RoleLink], taken: Iterable[RoleLink]
    ) -> None:
        version = transaction.change_policy()
        before = self._before(transaction)
        if before is None or before.version != version - 1:
            self._prepare(transaction, self._read(transaction))
            return
        given = tuple(given)
        rules.check_links(given, rules.homes_of(transaction, given), self.roles)
        index = before.index
        for link in given:
            index = index.given(link)
        for link in taken:
            index = index.taken(link)
        self._prepare(transaction, Policy(version, index, before.engine))

    def _before(self, transaction: Transaction) -> Policy | None:
        """What holds at this point of a transaction, which may have changed something already."""
        if self._pending is not None and self._pending[0] is transaction:
            return self._pending[1]
        return self._policy

    def _prepare(self, transaction: Transaction, policy: Policy) -> None:
        """Put a policy in force with the commit, before the next transaction begins."""
        self._pending = (transaction, policy)
        transaction.at_commit(lambda: self._swap(policy))

    def _swap(self, policy: Policy) -> None:
        self._policy, self._pending = policy, None


def _compare(policy: Policy, anew: Policy) -> None:
    """Raise FailedPrecondition when two policies of one version do not say the same."""
    if not policy.index.is_same_as(anew.index, paced):
        raise FailedPrecondition(f"{_REFUSED}: bindings in the tables are not those in force")
    for question, decision in paced(policy.engine.kept()):
        if anew.engine.answer(question) != decision:
            raise FailedPrecondition(f"{_REFUSED}: {question} was answered {decision}")
