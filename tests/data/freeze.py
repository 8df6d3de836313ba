"""`python -m tests.data.freeze VERSION`: keep the data directory of a release for ever.

Run it once, at the tag of a release: it drives a real appliance of that version through the command
until a row of every kind exists, stops it in order, and writes two files beside this one:

* `VERSION.tar`: the data directory, modes kept; logs and process ids of `run/` are left out;
* `VERSION.json`: the throw-away passwords, authenticator secrets and tokens of its people and
  applications, the time at which it was stopped, and what the lists held.

Every later version must open the first with the second (`tests/control/store/test_released.py`).
The secrets in it protect nothing: the appliance existed for a minute, on loopback.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.fakes import tiny_model
from tests.journeys import running
from tests.journeys.running import PROJECT, Appliance, texts, wait_for

HERE = Path(__file__).parent
PASSWORDS = {name: f"{name} keeps 31 quiet lanterns" for name in ("dora", "olga", "erin", "audi")}
ENROLLED = ("dora", "olga")
FIRST = "somebody else chose 7 words"
TRAIN = (
    *("--dataset=tokens/1", "--layers=2", "--hidden-size=32", "--intermediate-size=64"),
    *("--attention-heads=4", "--key-value-heads=2", "--context-length=32"),
    *("--batch-size=4", "--sequence-length=16", "--seed=7"),
)


def people(appliance: Appliance) -> dict[str, Any]:
    """People, applications and their roles: in a project, in every project, on the platform."""
    alice = appliance.alice
    alice.run("project", "create", "other")
    for name, password in PASSWORDS.items():
        first = FIRST if name in ENROLLED else password
        alice.run("user", "create", name, "--password-file", "-", stdin=first + "\n")
    bind = ("binding", "create", "--principal")
    alice.run(*bind, "users/dora", "--role", "developer", "--project", PROJECT)
    alice.run(*bind, "users/erin", "--role", "viewer", "--project", PROJECT)
    # In 0.1.0, whose commands said neither, both were everything, the platform included.
    alice.run(*bind, "users/olga", "--role", "owner", "--everywhere")
    alice.run(*bind, "users/audi", "--role", "auditor", "--platform")
    alice.run("service-account", "create", "app", "--project", PROJECT)
    alice.run(*bind, f"serviceAccounts/{PROJECT}--app", "--role", "inference", "--project", PROJECT)
    token = appliance.home / "app.token"
    alice.run(
        "service-account", "create-token", f"serviceAccounts/{PROJECT}--app", "--out", str(token)
    )
    secrets: dict[str, Any] = {"app": token.read_text().strip()}
    secrets["totp"] = {"alice": appliance.secret}
    for name in ENROLLED:
        who = appliance.person(name)
        secrets["totp"][name] = who.first_login(name, FIRST, PASSWORDS[name])
    wrong = appliance.person("nobody")
    for _ in range(2):
        wrong.run("login", "--user", "dora", "--password-file", "-", stdin="wrong\n", expect=4)
    alice.run("user", "lock", "erin")
    join = alice.json("node", "create-join-token", "node-9")
    secrets["join"] = join
    return secrets


def work(appliance: Appliance) -> None:
    """Data, models, jobs that ended in each way, and an endpoint whose replica never came."""
    alice, home = appliance.alice, appliance.home
    alice.run("dataset", "create", "docs")
    alice.run("dataset", "upload", "docs", str(texts(home / "texts", 40)))
    prepare = ("--output-dataset", "tokens", "--output-tokenizer", "bpe", "--vocabulary-size=512")
    alice.run("job", "prepare", "prepare", "--dataset", "docs/1", *prepare, "--wait")
    alice.run("job", "train", "small", "--output-model=small", "--steps=4", *TRAIN, "--wait")
    alice.run("job", "train", "ended", "--output-model=ended", "--steps=1000000", *TRAIN)
    alice.run("job", "cancel", "ended")
    wait_for(
        lambda: alice.json("job", "get", "ended", echo=False)["state"] == "STATE_CANCELLED",
        "the cancelled job to end",
    )
    folder = home / "tiny"
    folder.mkdir()
    for name, data in tiny_model.files().items():
        (folder / name).write_bytes(data)
    alice.run("model", "import", "tiny", str(folder))
    alice.run("job", "train", "waits", "--output-model=waits", "--steps=1000000", *TRAIN)


def freeze(version: str) -> None:
    """Make both files."""
    with tempfile.TemporaryDirectory() as home:
        with running.running(Path(home)) as appliance:
            secrets = people(appliance)
            work(appliance)
            secrets["passwords"] = PASSWORDS | {"alice": appliance.password}
            lists = {
                name: len(rows)
                for name, rows in appliance.holdings().items()
                if isinstance(rows, list)
            }
            time.sleep(2)  # a checkpoint of the audit log is signed after a second
            data = appliance.data
        stopped = datetime.now(UTC).isoformat()
        with tarfile.open(HERE / f"{version}.tar", "w") as archive:
            archive.add(data, "data", filter=_kept)
    facts = {"stopped": stopped, "lists": lists, **secrets}
    (HERE / f"{version}.json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")


def _kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if member.name.startswith("data/run/"):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    freeze(sys.argv[1])
