"""Casbin as its own pages show it: one enforcer over all rules, its graph of roles filled."""

from __future__ import annotations

from collections.abc import Iterable

import casbin

from appliance.control.auth.rules import ROLE_PREFIX, PolicyRule, RoleLink


class _Rows(casbin.persist.Adapter):  # type: ignore[misc]  # casbin is untyped
    def __init__(self, rules: Iterable[PolicyRule], links: Iterable[RoleLink]) -> None:
        self._rules, self._links = rules, links

    def load_policy(self, model: casbin.Model) -> None:
        model.add_policies(
            "p", "p", [[r.subject, r.domain, r.noun, r.verb, r.effect] for r in self._rules]
        )
        model.add_policies(
            "g", "g", [[k.subject, ROLE_PREFIX + k.role, k.domain] for k in self._links]
        )


def plain_casbin(
    model_text: str, rules: Iterable[PolicyRule], links: Iterable[RoleLink]
) -> casbin.Enforcer:
    """An enforcer that decides by these rules and links."""
    model = casbin.Model()
    model.load_model_from_text(model_text)
    return casbin.Enforcer(model, _Rows(rules, links))
