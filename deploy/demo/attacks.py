"""What an attacker would try, and what the appliance does about it."""

from __future__ import annotations

import contextlib
import json
import mmap
from pathlib import Path

from pysqlite3 import dbapi2 as sqlite

from deploy.demo import corpus
from deploy.demo.journey import PROJECT, Stage, wait_for

LOG_IN = 4
NOT_ALLOWED = 5
FAILED = 1


def call_without_permission(stage: Stage) -> str:
    """Call something without permission: denied, and in the audit chain by name."""
    stage.secrets["dora"] = stage.developer_logs_in()
    stage.developer.run("user", "list", expect=NOT_ALLOWED)
    records = stage.admin.json("audit", "list", "--outcome", "PERMISSION_DENIED")
    named = [record for record in records if record["principal"] == "users/dora"]
    stage.report.values["attacks"]["denied_recorded"] = bool(named)
    if not named:
        message = f"no denied record names users/dora: {records}"
        raise AssertionError(message)
    return f"record {named[0]['sequence']} names users/dora and {named[0]['method']}"


def write_into_the_state(stage: Stage) -> str:
    """Write into state.db that dora's session is alice's: refused, and recorded by row."""

    def give(session: str, owner: str) -> None:
        change = "UPDATE session SET user = ? WHERE id = ?"
        print(f"     sqlite3 state.db {change!r}   # {owner}")
        state.execute(change, (owner, session))
        state.commit()

    with contextlib.closing(sqlite.connect(stage.data / "state.db", timeout=30)) as state:
        (session,) = state.execute("SELECT id FROM session WHERE user = 'dora'").fetchone()
        give(session, "alice")
        try:
            stage.developer.run("user", "list", expect=LOG_IN)
        finally:
            give(session, "dora")
    # What stands there again is what the control plane wrote.
    stage.developer.run("whoami")
    find = ("audit", "list", "--outcome", "OBJECT_TAMPERED")
    records = wait_for(lambda: stage.admin.json(*find, echo=False), "the record of it", timeout=30)
    stage.report.values["attacks"]["forged_row_refused"] = session in records[0]["details"]
    if session not in records[0]["details"]:
        message = f"the record does not name the row: {records}"
        raise AssertionError(message)
    return f"nobody could use it; record {records[0]['sequence']} names session/{session}"


def change_a_sealed_byte(stage: Stage) -> str:
    """Change one byte of a sealed shard: refused, with the object named."""
    (version,) = stage.admin.json("dataset", "versions", "docs")
    shard = stage.data / "objects" / PROJECT / version["uid"] / "part-00000.jsonl"
    original = shard.read_bytes()
    place = len(original) // 2
    shard.write_bytes(original[:place] + bytes([original[place] ^ 1]) + original[place + 1 :])
    try:
        refused = stage.admin.run(
            *("job", "prepare", "prepare-again", "--dataset", version["name"]),
            *("--output-dataset", "again", "--output-tokenizer", "again", "--wait"),
            expect=FAILED,
        )
    finally:
        shard.write_bytes(original)
    said = refused.stdout + refused.stderr
    named = version["uid"] in said and "part-00000.jsonl" in said
    stage.report.values["attacks"]["sealed_byte_refused"] = named
    if not named:
        message = f"the refusal does not name the object: {said}"
        raise AssertionError(message)
    return f"the job failed and named part-00000.jsonl of object {version['uid'][:8]}..."


def change_an_audit_record(stage: Stage) -> str:
    """Change one audit record: the verifier names it."""
    folder = stage.home / "audit"
    folder.mkdir(exist_ok=True)
    records, checkpoint, key = (folder / name for name in ("records", "checkpoint", "key.pem"))
    admin = stage.admin
    admin.run("audit", "checkpoint", "--out", str(checkpoint), "--public-key-out", str(key))
    admin.run("audit", "export", "--out", str(records))
    verify = ("audit", "verify", "--records", str(records), "--public-key", str(key))
    admin.run(*verify, "--checkpoint", str(checkpoint))
    lines = records.read_bytes().splitlines(keepends=True)
    victim = next(i for i, line in enumerate(lines) if b"users/dora" in line)
    lines[victim] = lines[victim].replace(b"users/dora", b"users/eve0")
    records.write_bytes(b"".join(lines))
    said = admin.run(*verify, "--checkpoint", str(checkpoint), expect=FAILED)
    sequence = json.loads(lines[victim])["sequence"]
    found = str(sequence) in said.stderr + said.stdout
    stage.report.values["attacks"]["audit_edit_found"] = found
    if not found:
        message = f"the verifier does not name record {sequence}: {said}"
        raise AssertionError(message)
    return f"{len(lines)} records verified; after the edit the verifier names record {sequence}"


def search_for_plaintext(stage: Stage) -> str:
    """Take the disk: search it for a sentence of the dataset and for weights."""
    weights = next(stage.model.glob("*.safetensors")).read_bytes()
    middle = len(weights) // 2
    needles = {
        "sentence": corpus.a_sentence(stage.corpus).encode(),
        "weights": weights[middle : middle + 64],
    }
    del weights
    files = [path for path in stage.data.rglob("*") if path.is_file() and path.stat().st_size]
    found = [f"{what} in {path}" for path in files for what in _contained(path, needles)]
    stage.report.values["attacks"]["plaintext_found"] = bool(found)
    if found:
        raise AssertionError("; ".join(found))
    size = sum(path.stat().st_size for path in files)
    return f"{len(files)} files, {size / 1e6:.0f} MB: neither is there"


def _contained(path: Path, needles: dict[str, bytes]) -> list[str]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return [name for name, needle in needles.items() if data.find(needle) >= 0]


ATTACKS = (
    call_without_permission,
    write_into_the_state,
    change_a_sealed_byte,
    change_an_audit_record,
    search_for_plaintext,
)
