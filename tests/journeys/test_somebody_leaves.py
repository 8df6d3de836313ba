"""Somebody leaves: by the page, with a real gateway in front of which an application stands."""

from __future__ import annotations

import json
import shlex
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.journeys.running import PROJECT, Appliance, sentence, wait_for

pytestmark = pytest.mark.timeout(180)

FIRST, OWN = "somebody else chose 7 words", "my own 8 quiet harbours"
LOG_IN, NOT_FOUND = 4, 6


def gateway_says(appliance: Appliance, token: Path) -> int:
    """What the gateway answers to an application that asks for its models."""
    base = appliance.alice.json("status")["openai_base_url"]
    trusted = ssl.create_default_context(cafile=str(appliance.data / "ca.pem"))
    request = urllib.request.Request(
        f"{base}/models", headers={"authorization": f"Bearer {token.read_text().strip()}"}
    )
    try:
        with urllib.request.urlopen(request, context=trusted, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_somebody_leaves_and_what_they_made_is_named_ended_and_not_inherited(
    appliance: Appliance, tmp_path: Path
) -> None:
    alice, bob = appliance.alice, appliance.person("bob")
    made = ("user", "create", "bob", "--description", "Bob of the night shift")
    alice.run(*made, "--password-file", "-", stdin=FIRST + "\n")
    alice.run(*("binding", "create", "--principal", "users/bob", "--role", "owner"))
    bob.first_login("bob", FIRST, OWN)
    assert "May in projects/demo:\n" in bob.run("whoami").stdout
    bob.run("service-account", "create", "app")
    old, new = tmp_path / "old.token", tmp_path / "new.token"
    bob.run("service-account", "create-token", "app", "--out", str(old))
    wait_for(lambda: gateway_says(appliance, old) == 200, "the gateway to know the token")

    # Bob is locked out: what he made is named, and each command ends what it names.
    said = alice.run("user", "lock", "bob").stderr
    assert sentence(bob.run("whoami", expect=LOG_IN))
    (command,) = [line.strip() for line in said.splitlines() if line.startswith("  appliance ")]
    assert gateway_says(appliance, old) == 200
    (token,) = alice.json("service-account", "list-tokens", "--made-by", "bob")
    asked = ("service-account", "rotate-token", "app", token["id"], "--out", str(new))
    assert json.loads(alice.run(*asked, "-o", "json").stdout)["replaces"] == token["id"]
    wait_for(lambda: gateway_says(appliance, new) == 200, "the gateway to know the new token")
    assert gateway_says(appliance, old) == 200
    _, *typed = shlex.split(command)
    alice.run(*typed)
    wait_for(lambda: gateway_says(appliance, old) == 401, "the old token to end at the gateway")

    # He is deleted, and another Bob gets the name.
    described = alice.json("user", "describe", "bob")
    assert described["roles"] == [{"role": "owner", "scope": "projects/demo"}]
    alice.run("user", "delete", "bob", "--etag", described["etag"], "--yes")
    alice.run("user", "get", "bob", expect=NOT_FOUND)
    alice.run(*made[:3], "--password-file", "-", stdin=FIRST + "\n")
    newcomer = appliance.person("newcomer")
    newcomer.first_login("bob", FIRST, OWN)
    assert "Roles" not in newcomer.run("whoami").stdout
    newcomer.run("project", "get", PROJECT, expect=NOT_FOUND)
    assert sentence(bob.run("whoami", expect=LOG_IN))

    # The application goes too.
    assert gateway_says(appliance, new) == 200
    gone = alice.run("service-account", "delete", "app", "--yes")
    assert "made by them" not in gone.stderr
    wait_for(lambda: gateway_says(appliance, new) == 401, "the application to be refused")
