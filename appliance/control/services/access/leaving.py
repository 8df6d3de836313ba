"""A person or an application goes: everything that its name opened goes in the same transaction.

Rules kept here:
* whoever gets the name next inherits nothing: roles, answers of repeated calls, also of those that
  were about it, and uploads that are open;
* names of who made something stay where they are written: they say who it was at that time.

The attack: a name that is made again, and finds what was left under it. Called by the services of
people and of applications, which delete what has a foreign key (sessions, devices, tokens).
"""

from __future__ import annotations

from appliance.control.auth import grants
from appliance.control.auth.policy import PolicyStore
from appliance.control.auth.rules import RoleLink
from appliance.control.store import requests, tables
from appliance.control.store.database import Transaction
from appliance.core.identity import Principal


def leave(transaction: Transaction, policies: PolicyStore, principal: Principal) -> None:
    """Take everything away that is kept under the subject of a principal; call it last."""
    subject = principal.subject
    grants.disown_all(transaction, subject)
    request, binding = tables.request, tables.binding
    transaction.run(request.delete().where(request.c.principal == subject))
    requests.forget_about(transaction, principal.name)
    held = transaction.all(binding.select().where(binding.c.subject == subject))
    transaction.run(binding.delete().where(binding.c.subject == subject))
    if held:
        links = (RoleLink(row.subject, row.role, row.domain) for row in held)
        policies.after_revoking(transaction, *links)
