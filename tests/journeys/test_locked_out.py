"""Somebody guesses wrongly on purpose; a first password is replaced; nobody can log in any more."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.control.store import tables
from appliance.control.store.types import EPOCH
from deploy.demo.terminal import Terminal
from tests.fakes.state import as_control
from tests.journeys.running import PROGRAM, Appliance, code_of, sentence, wait_for

pytestmark = pytest.mark.timeout(240)

LOG_IN, FAILED = 4, 1
FIRST = "somebody else chose 7 words"
OWN = "four ferries leave at dawn"
ALL_FAILED = 100


@pytest.fixture(scope="module")
def erin(appliance: Appliance) -> Terminal:
    appliance.alice.run("user", "create", "erin", "--password-file", "-", stdin=FIRST + "\n")
    return appliance.person("erin")


def next_code(secret: str, last: float) -> str:
    """A code that was not used yet: of a step after the one at `last`."""
    return code_of(secret, max(time.time(), last + 30))


def guess(stranger: Terminal, user: str) -> str:
    """One wrong password from a device nobody has heard of; what is said."""
    done = stranger.run(
        *("login", "--user", user, "--password-file", "-"),
        stdin="not the password\n",
        expect=LOG_IN,
        echo=False,
    )
    return sentence(done)


def shut(appliance: Appliance, user: str) -> None:
    """As the rest of a hundred wrong guesses leave the counter, which takes a day by the delays.

    Signed as the control plane would: it believes no other row.
    """
    appliance.alice.run("down", "--data-dir", str(appliance.data))
    with as_control(appliance.data) as state, state.write() as transaction:
        counter = tables.attempt.update().where(tables.attempt.c.account == f"user:{user}")
        assert transaction.run(counter.values(failures=ALL_FAILED, next_time=EPOCH)) == 1
    appliance.alice.run("up", "--data-dir", str(appliance.data), "--detach")


def test_a_first_password_is_replaced_at_the_first_log_in(
    appliance: Appliance, erin: Terminal
) -> None:
    secret = erin.first_login("erin", FIRST, OWN)
    assert json.loads(erin.run("whoami", "-o", "json").stdout)["principal"] == "users/erin"
    users = {user["name"]: user for user in appliance.alice.json("user", "list")}
    assert users["users/erin"]["must_change_password"] is False
    old = erin.run(
        *("login", "--user", "erin", "--password-file", "-"), stdin=FIRST + "\n", expect=LOG_IN
    )
    assert sentence(old) == "the user or the password is wrong: check both, then try again"
    appliance.alice.run(
        "user", "reset-password", "erin", "--yes", "--password-file", "-", stdin=FIRST + "\n"
    )
    assert "log in again" in sentence(erin.run("whoami", expect=LOG_IN))
    files = ("--password-file", "-", "--code-file", "-")
    begun = time.time()
    half = erin.run("login", *files, stdin=f"{FIRST}\n{next_code(secret, begun)}\n", expect=LOG_IN)
    assert "give --new-password-file" in sentence(half)
    assert "appliance password change" in sentence(erin.run("project", "list", expect=LOG_IN))
    erin.run(
        *("password", "change", "--password-file", "-", "--new-password-file", "-"),
        stdin=f"{FIRST}\n{OWN} again\n",
    )
    assert json.loads(erin.run("whoami", "-o", "json").stdout)["principal"] == "users/erin"


@pytest.mark.attack
def test_wrong_guesses_shut_the_way_for_strangers_and_for_nobody_else(
    appliance: Appliance, tmp_path: Path
) -> None:
    alice, stranger = appliance.alice, appliance.person("stranger")
    for _ in range(3):
        said = guess(stranger, "alice")
        assert said == "the user or the password is wrong: check both, then try again"
    shut(appliance, "alice")
    refused = stranger.run(
        *("login", "--user", "alice", "--password-file", "-"),
        stdin=appliance.password + "\n",
        expect=FAILED,
    )
    assert "log in from a device on which you have logged in before" in sentence(refused)
    # Her session works, and her own device lets her in anew.
    alice.run("whoami")
    given = f"{appliance.password}\n{next_code(appliance.secret, time.time())}\n"
    alice.run("login", "--password-file", "-", "--code-file", "-", stdin=given)
    listed = alice.json("session", "list")
    assert sum(each["current"] for each in listed) == 1
    alice.run("session", "end", "--others")
    assert len(alice.json("session", "list")) == 1
    alice.run("user", "unlock", "alice")
    assert guess(stranger, "alice") == said


def test_who_may_read_the_keys_lets_people_in_when_nobody_can(appliance: Appliance) -> None:
    alice = appliance.alice
    offline = [sys.executable, "-m", "appliance.control"]
    offline += ["--config", str(appliance.data / "control.toml")]

    def run(*arguments: str, expect: int = 0) -> str:
        done = subprocess.run(
            [*offline, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == expect, done.stderr
        return done.stdout or done.stderr

    assert "another control plane uses" in run("unlock", "alice", expect=1)
    alice.run("down", "--data-dir", str(appliance.data))
    shut_out = {"done": "reset-factor", "user": "users/alice"}
    assert json.loads(run("unlock", "alice")) == {"done": "unlock", "user": "users/alice"}
    assert json.loads(run("reset-factor", "alice")) == shut_out
    alice.run("up", "--data-dir", str(appliance.data), "--detach")
    assert "log in again" in sentence(alice.run("whoami", expect=LOG_IN))
    appliance.secret = alice.first_login("alice", appliance.password)
    wait_for(lambda: alice.run("whoami", echo=False), "alice to be back")
    records = alice.json("audit", "list")
    methods = [record["method"] for record in records if not record["principal"]]
    assert {"unlock", "reset-factor"} <= set(methods)


def test_every_name_that_was_typed_is_a_command() -> None:
    """What refusals and hints tell people to type exists."""
    for words in (
        ("password", "change"),
        ("session", "list"),
        ("node", "list-join-tokens"),
        ("node", "create-join-token"),
        ("user", "unlock"),
    ):
        done = subprocess.run([PROGRAM, *words, "--help"], capture_output=True, check=False)
        assert done.returncode == 0, words
