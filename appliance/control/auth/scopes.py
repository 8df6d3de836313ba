"""Where a right holds: on the platform, in all projects, or in one. Pure.

Rules kept here:
* the three are different things: what holds in all projects holds in each of them and not on the
  platform, what holds on the platform holds in no project;
* a scope is always said. An empty one is an error, never "everywhere";
* no project can be called like one of the others: an id holds neither `/` nor `*`.

The attack: a field that was left empty and gave an owner of projects rights over the appliance
itself. Called by the policy, the gate and every service that speaks of scopes.
"""

from __future__ import annotations

from appliance.core import names
from appliance.core.errors import InvalidInput
from appliance.core.names import Name, is_id, shown

PLATFORM = "/platform"
"""Domain of the appliance itself: people, servers, the audit log."""
EVERYWHERE = "*"
"""Domain of all projects, those to come too."""

PLATFORM_NAME = "platform"
EVERYWHERE_NAME = "projects/-"


def is_domain(domain: str) -> bool:
    """Whether a text is one of the three."""
    return domain in {PLATFORM, EVERYWHERE} or is_id(domain)


def parse(text: str, field: str) -> str:
    """The domain of a scope in a request. Raises InvalidInput naming `field`."""
    if text == PLATFORM_NAME:
        return PLATFORM
    if text == EVERYWHERE_NAME:
        return EVERYWHERE
    if not text:
        raise missing_scope(field)
    try:
        return Name.parse(text, "project").id
    except InvalidInput as error:
        wrong = (
            f"{shown(text)} is no scope: write projects/{{project}} for one project, "
            f"{EVERYWHERE_NAME} for all projects, {PLATFORM_NAME} for the appliance itself"
        )
        raise InvalidInput(f"{field}: {wrong}", fields={field: wrong}) from error


def missing_scope(field: str) -> InvalidInput:
    """A scope that was left empty."""
    wrong = (
        "is empty: write projects/{project} for one project, "
        f"{EVERYWHERE_NAME} for all projects, {PLATFORM_NAME} for the appliance itself"
    )
    return InvalidInput(f"{field} {wrong}", fields={field: wrong})


def name(domain: str) -> str:
    """A domain as requests and answers write it."""
    if domain == PLATFORM:
        return PLATFORM_NAME
    return EVERYWHERE_NAME if domain == EVERYWHERE else names.project(domain)


def phrase(domain: str) -> str:
    """A domain in a sentence: "on the platform", "in all projects", "in projects/demo"."""
    if domain == PLATFORM:
        return "on the platform"
    return "in all projects" if domain == EVERYWHERE else f"in {names.project(domain)}"
