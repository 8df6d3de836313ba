"""Who holds which role where: an immutable index that a change copies one entry of. Pure.

Rules kept here:
* an index never changes; `given` and `taken` make another one that shares all but one bucket, so a
  change costs the same with ten bindings and with a million;
* a question is answered by exact text: a subject, then a domain.

Called by the policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from appliance.control.auth.pacing import Pace, at_once
from appliance.control.auth.rules import RoleLink

BUCKETS = 4096
_NONE: frozenset[str] = frozenset()

Held = Mapping[str, frozenset[str]]
"""What one subject holds: roles by domain."""
_NOTHING: Held = {}
_EMPTY: Mapping[str, Held] = {}


@dataclass(frozen=True, eq=False)
class Index:
    """Roles by subject and domain."""

    _buckets: tuple[Mapping[str, Held], ...]

    @classmethod
    def of(cls, links: Iterable[RoleLink], pace: Pace = at_once) -> Index:
        """The index of some links."""
        held: dict[str, dict[str, set[str]]] = {}
        for link in pace(links):
            held.setdefault(link.subject, {}).setdefault(link.domain, set()).add(link.role)
        buckets: list[Mapping[str, Held]] = [_EMPTY] * BUCKETS
        filled: dict[int, dict[str, Held]] = {}
        for subject, domains in pace(held.items()):
            found = filled.setdefault(_bucket(subject), {})
            found[subject] = {domain: frozenset(roles) for domain, roles in domains.items()}
        for number, bucket in filled.items():
            buckets[number] = bucket
        return cls(tuple(buckets))

    def is_same_as(self, other: Index, pace: Pace = at_once) -> bool:
        """Whether two say the same."""
        pairs = zip(self._buckets, other._buckets, strict=True)
        return all(mine == its for mine, its in pace(pairs))

    def held(self, subject: str) -> Held:
        """Everything a subject holds. The same object as long as nothing of it changes."""
        return self._buckets[_bucket(subject)].get(subject, _NOTHING)

    def roles(self, subject: str, domain: str) -> frozenset[str]:
        """The roles a subject holds in exactly this domain."""
        return self.held(subject).get(domain, _NONE)

    def given(self, link: RoleLink) -> Index:
        """With one link more."""
        return self._with(link, self.roles(link.subject, link.domain) | {link.role})

    def taken(self, link: RoleLink) -> Index:
        """Without one link."""
        return self._with(link, self.roles(link.subject, link.domain) - {link.role})

    def _with(self, link: RoleLink, roles: frozenset[str]) -> Index:
        held = {**self.held(link.subject), link.domain: roles}
        if not roles:
            del held[link.domain]
        number = _bucket(link.subject)
        bucket = {**self._buckets[number], link.subject: held}
        if not held:
            del bucket[link.subject]
        return Index((*self._buckets[:number], bucket, *self._buckets[number + 1 :]))


def _bucket(subject: str) -> int:
    return hash(subject) % BUCKETS
