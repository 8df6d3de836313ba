"""The table of nouns and verbs in docs/api.md is that of the protos.

A cell that is empty has its reason.
"""

from __future__ import annotations

import re

from appliance.client.methods import SERVICES
from tests.fakes.pages import ROOT

PAGE = ROOT / "docs/api.md"
VERBS = ("get", "list", "create", "update", "delete")
NO_NOUNS = {"AuthService", "InferenceService"}
"""What they do is about the caller, or about an answer."""
OTHER_WORDS = {
    "DatasetVersion": {"create": "UploadDatasetVersion"},
    "ModelVersion": {"create": "ImportModelVersion"},
    "Upload": {"delete": "AbortUpload"},
    "Token": {"delete": "RevokeToken"},
    "JoinToken": {"delete": "RevokeJoinToken"},
}
"""Verbs of the table that have a name of their own."""


def methods() -> list[str]:
    """Every call of the services that have nouns, as `Service.Method`."""
    found = []
    for service in sorted(set(SERVICES) - NO_NOUNS):
        module = __import__(f"appliance.api.{SERVICES[service]}_pb2", fromlist=["DESCRIPTOR"])
        descriptor = module.DESCRIPTOR.services_by_name[service]
        found += [f"{service}.{method.name}" for method in descriptor.methods]
    return found


def nouns(calls: list[str]) -> list[str]:
    """What can be listed, created or deleted, longest name first."""
    found = set()
    for call in calls:
        verb, noun = re.fullmatch(r"([A-Z][a-z]+)(\w+)", call.partition(".")[2]).groups()  # type: ignore[union-attr]  # all match
        if verb == "List":
            found.add(noun.removesuffix("s"))
        if verb in {"Create", "Update", "Delete"}:
            found.add(noun)
    return sorted(found, key=lambda noun: (-len(noun), noun))


def cells() -> dict[str, dict[str, list[str]]]:
    """Noun -> verb, or `other` -> calls."""
    calls = methods()
    known = nouns(calls)
    table: dict[str, dict[str, list[str]]] = {noun: {} for noun in sorted(known)}
    for call in calls:
        short = call.partition(".")[2]
        noun = next((noun for noun in known if re.search(rf"{noun}s?$", short)), "")
        if not noun:
            continue
        verb = next((verb for verb, name in OTHER_WORDS.get(noun, {}).items() if name == short), "")
        plain = {verb: f"{verb.title()}{noun}{'s' * (verb == 'list')}" for verb in VERBS}
        verb = verb or next((verb for verb, name in plain.items() if name == short), "other")
        table[noun].setdefault(verb, []).append(short)
    return table


def written() -> list[str]:
    """The rows as they must stand in the page."""
    rows = []
    for noun, row in cells().items():
        marks = ["yes" if verb in row else "" for verb in VERBS]
        named = [f"`{name}`" for verb in (*VERBS, "other") for name in row.get(verb, [])]
        plain = {f"`{verb.title()}{noun}{'s' * (verb == 'list')}`" for verb in VERBS}
        others = ", ".join(name for name in named if name not in plain)
        rows.append(f"| {noun} | {' | '.join(marks)} | {others} |".replace("  ", " "))
    return rows


def test_the_table_is_that_of_the_protos() -> None:
    page = PAGE.read_text().splitlines()
    first = next(index for index, line in enumerate(page) if line.startswith("| noun | get |")) + 2
    stands = page[first : first + len(written()) + 1]
    assert "\n".join([*written(), ""]) == "\n".join(stands)


def test_every_empty_cell_has_its_reason() -> None:
    empty = {(noun, verb) for noun, row in cells().items() for verb in VERBS if verb not in row}
    reasons = re.findall(
        r"^\| ([A-Z]\w+) \| ([a-z, ]+) \| \S.+ \|$", PAGE.read_text(), re.MULTILINE
    )
    said = [(noun, verb) for noun, verbs in reasons for verb in verbs.split(", ")]
    assert sorted(empty) == sorted(pair for pair in said if pair[1] in VERBS)
