"""Bad input, typed by users: one sentence, the exit code for it, and everything is as before."""

import json
import pickle
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.local import Local
from appliance.core.data_directory import KEPT, PARTS
from appliance.core.model_config import check_config
from deploy.demo.terminal import Terminal
from tests.fakes import tiny_model
from tests.fakes.wire import other_authority
from tests.journeys import running
from tests.journeys.running import PROGRAM, PROJECT, Appliance, code_of, sentence, texts

pytestmark = pytest.mark.timeout(180)

FAILED, USAGE, LOG_IN, NOT_FOUND, UNREACHABLE = 1, 2, 4, 6, 7
PASSWORD = "seven quiet 92 lanterns"
FIRST_PASSWORD = "somebody else chose 7 words"
# Heads of width 64, which every engine serves.
SHAPE = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
SMALL = {
    "layers": 2,
    "hidden-size": 32,
    "intermediate-size": 64,
    "attention-heads": 4,
    "key-value-heads": 2,
    "context-length": 32,
    "steps": 4,
    "batch-size": 4,
    "sequence-length": 16,
}


@pytest.fixture(scope="module")
def filled(appliance: Appliance) -> Appliance:
    """The appliance with text `docs/1`, tokens `tokens/1` and a model `tiny/1`."""
    alice = appliance.alice
    alice.run("dataset", "create", "docs")
    alice.run("dataset", "upload", "docs", str(texts(appliance.home / "texts")))
    alice.run(
        *("job", "prepare", "prepare", "--dataset", "docs/1", "--output-dataset", "tokens"),
        *("--output-tokenizer", "bpe", "--vocabulary-size", "512", "--wait"),
    )
    alice.run("model", "import", "tiny", str(model_folder(appliance.home / "tiny")))
    return appliance


def model_folder(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    files = tiny_model.files(**SHAPE, **changes)
    tensors = dict(check_config(tiny_model.CONFIG | SHAPE).shapes)
    files["model.safetensors"] = tiny_model.safetensors(tensors)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def train(**changes: object) -> list[str]:
    """A small training job with some options changed."""
    options = SMALL | {name.replace("_", "-"): value for name, value in changes.items()}
    given = ["job", "train", "refused", "--dataset", "tokens/1", "--output-model", "small"]
    return given + [f"--{name}={value}" for name, value in options.items()]


@pytest.fixture(scope="module")
def dora(appliance: Appliance) -> Terminal:
    appliance.alice.run(
        "user", "create", "dora", "--password-file", "-", stdin=FIRST_PASSWORD + "\n"
    )
    return appliance.person("dora")


def test_a_wrong_password_and_a_wrong_or_repeated_code(
    appliance: Appliance, dora: Terminal
) -> None:
    login = ("login", "--user", "dora", "--password-file", "-")
    said = appliance.refused(*login, stdin="not her password\n", code=LOG_IN, who=dora)
    assert said == "the user or the password is wrong: check both, then try again"
    stranger = ("login", "--user", "nobody", "--password-file", "-")
    assert appliance.refused(*stranger, stdin="x\n", code=LOG_IN, who=dora) == said

    before = time.time()
    secret = dora.first_login("dora", FIRST_PASSWORD, PASSWORD)
    expected = "this code is wrong or was used before: wait for the next one, then try again"
    for code in (code_of(secret, before), code_of(secret, before - 3600)):
        given = f"{PASSWORD}\n{code}\n"
        said = appliance.refused(*login, "--code-file", "-", stdin=given, code=LOG_IN, who=dora)
        assert said == expected
    assert json.loads(dora.run("whoami", "-o", "json").stdout)["principal"] == "users/dora"


def test_an_unknown_role_or_person(appliance: Appliance) -> None:
    give = ("binding", "create", "--project", PROJECT)
    said = appliance.refused(*give, "--principal", "users/alice", "--role", "wizard")
    assert said.startswith("this binding is refused: there is no role 'wizard'; roles: admin")
    said = appliance.refused(*give, "--principal", "users/bob", "--role", "viewer")
    assert said == "binding.principal: there is no users/bob: create it first"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("latin.txt", b"caf\xe9 au lait", "is not UTF-8 text: convert it or leave it out."),
        ("noise.md", bytes(range(256)) * 9, "is not UTF-8 text: convert it or leave it out."),
        (
            "wide.txt",
            "text".encode("utf-16-le"),
            "holds NUL bytes: it is binary or UTF-16; convert it to UTF-8.",
        ),
        (
            "photo.png",
            b"\x89PNG",
            "is no text to upload: give folders or files named .txt, .md, .rst, .jsonl.",
        ),
        (
            "broken.jsonl",
            b'{"text": "fine"}\n{"text": 5}\n',
            "line 2 is no JSON object with a `text`: fix it.",
        ),
        ("missing.txt", None, "does not exist: check how it is written."),
    ],
)
def test_text_that_cannot_be_read(
    filled: Appliance, tmp_path: Path, name: str, content: bytes | None, expected: str
) -> None:
    # A good document goes first: an upload is refused as a whole.
    (tmp_path / "a.txt").write_text("This one is fine.")
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    said = filled.refused("dataset", "upload", "docs", str(tmp_path / "a.txt"), str(file))
    assert said == f"{file} {expected}"


def test_datasets_that_cannot_be_used(filled: Appliance) -> None:
    filled.alice.run("project", "create", "other")
    filled.alice.run("dataset", "create", "theirs", "--project", "other")
    theirs = json.loads(
        filled.alice.run(
            *("dataset", "upload", "theirs", str(filled.home / "texts"), "--project", "other"),
            *("-o", "json"),
        ).stdout
    )
    prepare = (
        "job",
        "prepare",
        "refused",
        "--output-dataset",
        "made",
        "--output-tokenizer",
        "made",
    )
    at, unknown = "job.prepare.datasets[0]", f"projects/{PROJECT}/datasets/docs/versions/9"
    advice = f"`appliance dataset versions docs --project {PROJECT}` shows what there is"
    for name, expected in (
        (
            theirs["name"],
            "is in project other; a job works inside its own project: name one of demo.",
        ),
        ("tokens/1", "holds tokens; name a version of text."),
        (
            "docs/9",
            f"names {unknown!r}, which does not exist or is not complete: {advice}.",
        ),
    ):
        assert filled.refused(*prepare, "--dataset", name) == f"{at} {expected}"
    said = filled.refused("dataset", "upload", "none", str(filled.home / "texts"), code=NOT_FOUND)
    assert said == (
        "there is no dataset none in projects/demo: make it with `appliance dataset create none "
        "--project demo`, then upload again"
    )


def test_a_changed_byte_of_a_sealed_shard(filled: Appliance) -> None:
    (version,) = json.loads(filled.alice.run("dataset", "versions", "docs", "-o", "json").stdout)
    shard = filled.objects / PROJECT / version["uid"] / "part-00000.jsonl"
    original = shard.read_bytes()
    middle = len(original) // 2
    before = filled.holdings()
    shard.write_bytes(original[:middle] + bytes([original[middle] ^ 1]) + original[middle + 1 :])
    try:
        done = filled.alice.run(
            *("job", "prepare", "tampered", "--dataset", "docs/1", "--output-dataset", "made"),
            *("--output-tokenizer", "made", "--wait", "--timeout", "60s"),
            expect=FAILED,
        )
    finally:
        shard.write_bytes(original)
    said = sentence(done)
    assert said.startswith("projects/demo/jobs/tampered failed: ")
    assert version["uid"] in said
    assert "part-00000.jsonl" in said
    after = filled.holdings()
    assert [row for row in after.pop("jobs") if "jobs/tampered" not in row] == before.pop("jobs")
    assert after == before


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layers": 3, "pipeline": 2}, "pipeline needs 2 stages, which do not share 3 layers"),
        ({"tensor": 3}, "tensor is 3, which does not divide the attention heads of 4: use a div"),
        ({"attention_heads": 3}, "key_value_heads is 2, which does not divide the attention heads"),
        ({"batch_size": 3, "data": 2}, "batch_size is 3, which 2 data ranks with 1 microbatches"),
        ({"data": 8, "batch_size": 8}, "the job needs 8 ranks"),
        (
            {"hidden_size": 32768, "intermediate_size": 131072, "layers": 40},
            "per rank; the largest node offers",
        ),
    ],
)
def test_degrees_that_do_not_divide_and_too_little_memory(
    filled: Appliance, changes: dict[str, int], expected: str
) -> None:
    assert expected in filled.refused(*train(**changes))


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (("--cache-bytes", str(1 << 41)), "per device; the largest node offers"),
        (("--tensor-parallel", "8"), "tensor_parallel is 8, which does not divide the attention"),
        (("--max-sequence-length", "4096"), "must be 2 to the model's context of 128 tokens"),
    ],
)
def test_endpoints_that_do_not_fit(
    filled: Appliance, option: tuple[str, str], expected: str
) -> None:
    create = ("endpoint", "create", "refused", "--model", "tiny/1")
    assert expected in filled.refused(*create, *option)


class Payload:
    """What a pickle runs when it is read: makes a file."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return (Path.touch, (self._canary,))


@pytest.mark.attack
@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("pytorch_model.bin", "'pytorch_model.bin' is refused: .bin files can hold code."),
        ("model.safetensors", "model.safetensors is not a safetensors file"),
        ("tokenizer.json", "tokenizer.json is not JSON"),
        ("modeling_x.py", "'modeling_x.py' is refused: .py files can hold code."),
        (
            "config.json",
            "config.json.auto_map names code to run ('auto_map'). Models",
        ),
    ],
)
def test_a_model_with_code_in_it(
    appliance: Appliance, tmp_path: Path, file: str, expected: str
) -> None:
    canary = tmp_path / "canary"
    folder = model_folder(tmp_path / "model", auto_map={"AutoModel": "modeling_x.X"})
    if file != "config.json":
        config = tiny_model.CONFIG | SHAPE
        (folder / "config.json").write_text(json.dumps(config))
        code = f"open({str(canary)!r}, 'w')"
        content = code.encode() if file.endswith(".py") else pickle.dumps(Payload(canary))
        (folder / file).write_bytes(content)
    if file.endswith(".bin"):
        # Beside safetensors it would be left out.
        (folder / "model.safetensors").unlink()
    assert appliance.refused("model", "import", "evil", str(folder)).startswith(expected)
    assert not canary.exists()


def test_a_port_in_use(appliance: Appliance, tmp_path: Path) -> None:
    carol, data = Terminal(PROGRAM, tmp_path / "carol"), tmp_path / "data"
    running.init(carol, data, PASSWORD)
    address, setting = Local(data).programs()[2].listens[0]
    host, _, port = address.rpartition(":")
    with socket.socket() as taken:
        taken.bind((host, int(port)))
        taken.listen()
        for how in ((), ("--detach",)):
            said = sentence(carol.run("up", "--data-dir", str(data), *how, expect=FAILED))
            assert said == (
                f"port {port} is in use: stop what listens on {address}, or set {setting} to "
                "another port"
            )
    assert running.mentioning(data) == []
    assert Local(data).supervisor() is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--listen", "nosuch.invalid"), "set --listen to an address of this machine"),
        (("--listen", "192.0.2.1"), "set --listen to an address of this machine"),
        (("--listen", "0.0.0.0"), "say with --address under which host others reach it"),
        (("--address", "x y"), "--address 'x y' is no host that others can reach"),
        (("--address", ""), "--address '' is no host that others can reach"),
        (("--address", "192.0.2.1"), "does not lead to --listen 127.0.0.1: give the same address"),
        (("--admin", "Alice!"), "admin"),
    ],
)
def test_an_impossible_place(tmp_path: Path, options: tuple[str, str], expected: str) -> None:
    carol, data = Terminal(PROGRAM, tmp_path / "carol"), tmp_path / "data"
    assert expected in sentence(running.init(carol, data, PASSWORD, *options, expect=FAILED))
    assert not data.exists()
    assert carol.run("context", "list", "-o", "json").stdout == "[]\n"


def test_ports_that_are_taken_and_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    carol, data = Terminal(PROGRAM, tmp_path / "carol"), tmp_path / "data"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = running.init(carol, data, PASSWORD, "--port-base", port, expect=FAILED)
        assert "or set --port-base to another port" in sentence(done)
    homeless = Terminal(PROGRAM, tmp_path / "dora", {"XDG_CONFIG_HOME": "/proc/nowhere"})
    said = sentence(running.init(homeless, data, PASSWORD, expect=FAILED))
    assert said.startswith("contexts and sessions cannot be kept in /proc/nowhere/appliance (")
    assert "set XDG_CONFIG_HOME to a folder that this user may write" in said
    assert not data.exists()


def test_an_appliance_on_ipv6_is_reached_by_its_context(tmp_path: Path) -> None:
    carol, data = Terminal(PROGRAM, tmp_path / "carol"), tmp_path / "data"
    running.init(carol, data, PASSWORD, "--listen", "::1")
    (context,) = json.loads(carol.run("context", "list", "-o", "json").stdout)
    assert context["server"].startswith("[::1]:")
    carol.run("up", "--data-dir", str(data), "--detach")
    try:
        assert json.loads(carol.run("status", "-o", "json").stdout)["serving"] is True
    finally:
        carol.run("down", "--data-dir", str(data))


def test_a_lost_part_of_a_data_directory(tmp_path: Path) -> None:
    """At every start, and when a new appliance would be made over what is left."""
    carol, data = Terminal(PROGRAM, tmp_path / "carol"), tmp_path / "data"
    running.init(carol, data, PASSWORD)
    config = str(data / "control.toml")
    for part, advice in PARTS.items():
        kept = (data / part).rename(tmp_path / "kept")
        left = {path: path.stat().st_size for path in data.rglob("*")}
        expected = f"{data} holds an appliance whose {part} is missing; {advice}"
        for how in (("--detach",), ()):
            said = sentence(carol.run("up", "--data-dir", str(data), *how, expect=FAILED))
            assert said == expected
        assert sentence(running.init(carol, data, PASSWORD, expect=FAILED)) == expected
        if part in KEPT or part == "control.toml":
            command = [sys.executable, "-m", "appliance.control", "--config", config]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (FAILED, f"error: {expected}\n")
        assert {path: path.stat().st_size for path in data.rglob("*")} == left
        kept.rename(data / part)
    assert running.mentioning(data) == []


def test_a_second_init_changes_nothing(appliance: Appliance) -> None:
    def files() -> dict[Path, bytes]:
        names = ("root.key", "keyring.sealed", "ca.pem", "control.toml", "node/node.toml")
        return {appliance.data / name: (appliance.data / name).read_bytes() for name in names}

    before, contexts = files(), appliance.alice.run("context", "list").stdout
    done = running.init(appliance.alice, appliance.data, PASSWORD, expect=FAILED)
    assert sentence(done) == (
        f"{appliance.data} already holds an appliance, which was left as it is: start it with "
        "`appliance up`, or choose another data directory"
    )
    assert (files(), appliance.alice.run("context", "list").stdout) == (before, contexts)
    again = appliance.alice.run("up", "--data-dir", str(appliance.data), expect=FAILED)
    assert "already running: stop it with `appliance down" in sentence(again)


def test_a_server_that_is_not_the_one_that_is_meant(appliance: Appliance, tmp_path: Path) -> None:
    """A CA certificate of another appliance; the port of another process; of something else."""
    stranger = appliance.person("stranger")
    other = tmp_path / "ca.pem"
    other.write_bytes(other_authority().certificate_pem)
    gateway = next(each for each in Local(appliance.data).programs() if each.name == "gateway")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.close()
        for name, server, ca, expected in (
            ("ca", appliance.server, other, "not one that the CA certificate in use vouches for"),
            ("kind", gateway.health, appliance.data / "ca.pem", "of another kind or name than"),
            ("none", f"127.0.0.1:{port}", other, f"nothing listens on 127.0.0.1:{port}: check"),
        ):
            stranger.run("context", "add", name, "--server", server, "--ca", str(ca))
            said = appliance.refused(
                *("login", "--user", "alice", "--password-file", "-"),
                stdin=PASSWORD + "\n",
                code=UNREACHABLE,
                who=stranger,
            )
            assert expected in said


@contextmanager
def tiny_disk(folder: Path, kibibytes: int) -> Iterator[bool]:
    """Put a file system of this size on a folder; False when this user may not."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k,mode=700", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, check=False)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def file_limit(pid: int, size: int) -> Iterator[None]:
    """Let a process write no file beyond this size, which fails like a full disk."""
    old = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, old)


def test_a_full_disk_during_an_upload(appliance: Appliance, tmp_path: Path) -> None:
    alice = appliance.alice
    alice.run("project", "create", "cramped")
    alice.run("dataset", "create", "big", "--project", "cramped")
    text = tmp_path / "big.txt"
    text.write_text("A line that is much like the one before it.\n" * 60_000)
    upload = ("dataset", "upload", "big", str(text), "--project", "cramped")
    with tiny_disk(appliance.objects / "cramped", 1024) as mounted:
        if mounted:
            said = appliance.refused(*upload)
        else:
            with file_limit(appliance.process_id("control"), 2 << 20):
                said = appliance.refused(*upload)
    assert said.lower().startswith("no space is left for ")
    assert "in the object store: free some" in said
    assert alice.run("dataset", "versions", "big", "--project", "cramped", "-o", "json").stdout == (
        "[]\n"
    )
    alice.run(*upload)


@pytest.mark.parametrize("kibibytes", [16, 300])
def test_a_full_disk_during_init(tmp_path: Path, kibibytes: int) -> None:
    disk, carol = tmp_path / "disk", Terminal(PROGRAM, tmp_path / "carol")
    cramped = carol
    with tiny_disk(disk, kibibytes) as mounted:
        if not mounted:
            limited = tmp_path / "limited"
            limited.write_text(f'#!/bin/sh\nulimit -f {kibibytes}\nexec {PROGRAM} "$@"\n')
            limited.chmod(0o700)
            cramped = Terminal(limited, tmp_path / "carol")
        said = sentence(running.init(cramped, disk / "data", PASSWORD, expect=FAILED))
        if mounted:
            # SQLite tells a limit of the process from a full disk, and calls it an I/O error.
            assert said.startswith(f"no space left for {disk}")
            assert said.endswith("free some space, then repeat")
        assert list(disk.iterdir()) == []
    assert carol.run("context", "list", "-o", "json").stdout == "[]\n"
    running.init(carol, disk / "data", PASSWORD)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("job", "train", "x", "--mesh", "data=two"), "Missing option '--dataset'."),
        (("dataset", "upload", "docs"), "Missing argument 'PATH...'."),
        (("datasets",), "No such command 'datasets'."),
    ],
)
def test_wrong_usage(appliance: Appliance, arguments: tuple[str, ...], expected: str) -> None:
    assert appliance.refused(*arguments, code=USAGE).startswith(expected)
