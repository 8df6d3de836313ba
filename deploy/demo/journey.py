"""The way from raw text to a served model, step by step, as an administrator would type it.

Each step is a function of the `Stage`: its docstring is its name, its result says what happened.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai

from deploy.demo import answers, corpus, processes
from deploy.demo.report import Report
from deploy.demo.terminal import Terminal

PROGRAM = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "appliance"
PROJECT = "demo"
CHAT = f"projects/{PROJECT}/endpoints/chat"
TRAINED = f"projects/{PROJECT}/endpoints/trained"
STEPS = 60
CHECKPOINT_INTERVAL = 10
MESHES = (
    ("one-rank", {"data": 1, "tensor": 1, "pipeline": 1}),
    ("tensor2-pipeline2", {"data": 1, "tensor": 2, "pipeline": 2}),
    ("data2-tensor2", {"data": 2, "tensor": 2, "pipeline": 1}),
)
KILLED = "tensor2-pipeline2"
# A CPU server offers process slots as devices; more than cores, because a demo may take its time.
DEVICES = 8


class Stage:
    """Where the demo plays: folders, terminals, and what later steps need of earlier ones."""

    def __init__(self, home: Path, model: Path, report: Report) -> None:
        self.home = home
        self.model = model
        self.report = report
        self.data = home / "data"
        self.corpus = home / "corpus"
        self.admin = Terminal(PROGRAM, home / "alice")
        self.developer = Terminal(PROGRAM, home / "dora")
        self.passwords = {"alice": secrets.token_urlsafe(18), "dora": secrets.token_urlsafe(18)}
        self.secrets: dict[str, str] = {}
        self.token_file = home / "app.token"
        self.addresses: dict[str, str] = {}

    @property
    def token(self) -> str:
        """The service account's bearer token."""
        return self.token_file.read_text().strip()

    @property
    def gateway(self) -> answers.Gateway:
        """How to reach the gateway as the service account."""
        return answers.Gateway(self.addresses["grpc"], self.ca.read_bytes(), self.token)

    @property
    def ca(self) -> Path:
        """The appliance's CA certificate, as handed to clients."""
        return self.data / "ca.pem"

    def developer_logs_in(self) -> str:
        """Dora's first login, from a home of her own; returns her authenticator's secret.

        The password that the administrator chose is replaced by her own.
        """
        server = self.addresses["control"]
        self.developer.run("context", "add", "demo", "--server", server, "--ca", str(self.ca))
        first, own = self.passwords["dora"], secrets.token_urlsafe(18)
        self.passwords["dora"] = own
        return self.developer.first_login("dora", first, own)

    def tear_down(self) -> None:
        """Stop everything that runs from the data directory."""
        if self.data.exists():
            self.admin.run("down", "--data-dir", str(self.data))

    def say_how_to_log_in(self) -> None:
        """Print what a person needs to go on from here."""
        print(
            f"\nThe appliance is up. To look around:\n"
            f"  export XDG_CONFIG_HOME={self.home / 'alice' / 'config'}\n"
            f"  {PROGRAM} whoami            # the administrator's session is live\n"
            f'  {PROGRAM} ask {CHAT} "What is a module?"\n'
            f"To log in anew: {PROGRAM} login --user alice\n"
            f"  password {self.passwords['alice']}, authenticator secret {self.secrets['alice']}\n"
            f"To end it: {PROGRAM} down --data-dir {self.data}"
        )


def bring_up(stage: Stage) -> str:
    """Bring up: keys, CA, state, three processes."""
    base = _free_ports()
    stage.addresses["control"] = f"127.0.0.1:{base}"
    stage.admin.run(
        *("init", "--data-dir", str(stage.data), "--admin", "alice", "--password-file", "-"),
        *("--port-base", str(base), "--devices", str(DEVICES)),
        stdin=stage.passwords["alice"] + "\n",
    )
    stage.admin.run("up", "--data-dir", str(stage.data), "--detach")
    mode = oct((stage.data / "root.key").stat().st_mode & 0o777)
    return f"control plane, node agent and gateway on loopback from port {base}; root.key {mode}"


def log_in(stage: Stage) -> str:
    """Log in: password, then TOTP; project, user, service account."""
    admin = stage.admin
    stage.secrets["alice"] = admin.first_login("alice", stage.passwords["alice"])
    admin.run("project", "create", PROJECT, "--description", "From text to a served model")
    admin.run("context", "set-project", PROJECT)
    admin.run(
        "user", "create", "dora", "--password-file", "-", stdin=stage.passwords["dora"] + "\n"
    )
    bind = ("binding", "create", "--project", PROJECT)
    admin.run(*bind, "--principal", "users/dora", "--role", "developer")
    admin.run("service-account", "create", "app", "--project", PROJECT)
    admin.run(*bind, "--principal", f"serviceAccounts/{PROJECT}--app", "--role", "inference")
    admin.run("service-account", "create-token", "app", "--out", str(stage.token_file))
    nodes = admin.json("node", "list")
    return f"alice, dora and app exist; node {nodes[0]['name']} is {nodes[0]['state']}"


def prepare(stage: Stage) -> str:
    """Data: upload real text, prepare it."""
    count, size = corpus.write(stage.corpus)
    admin = stage.admin
    admin.run("dataset", "create", "docs", "--description", "What every CPython ships")
    raw = admin.json("dataset", "upload", "docs", str(stage.corpus))
    job = admin.json(
        *("job", "prepare", "prepare", "--dataset", raw["name"], "--output-dataset", "tokens"),
        *("--output-tokenizer", "bpe", "--vocabulary-size", "2048"),
        *("--validation-fraction", "0.05", "--wait"),
    )
    values = job["result"]["values"]
    stage.report.values["prepare"] = {
        "documents": int(values["documents"]),
        "kept": int(values["kept"]),
        "dropped": {key: int(value) for key, value in job["result"]["dropped"].items()},
        "tokens": int(values["tokens"]),
    }
    report = admin.json("dataset", "report", f"projects/{PROJECT}/datasets/tokens/versions/1")
    for step in report["steps"]:
        print(f"     {step['name']:20} {step['documents_in']:>6} -> {step['documents_out']:>6}")
    kept, tokens = values["kept"], values["tokens"]
    return f"{count} documents, {size / 1e6:.1f} MB; {kept:.0f} kept, {tokens:.0f} tokens"


def train(stage: Stage) -> str:
    """Train: one rank, tensor 2 x pipeline 2 (killed once), data 2 x tensor 2."""
    curves: dict[str, list[float]] = {}
    for name, mesh in MESHES:
        killed = _start_training(stage, name, mesh)
        job = stage.admin.json("job", "get", f"train-{name}")
        metrics = stage.admin.json("job", "metrics", f"train-{name}")
        by_step = {int(row["step"]): row["values"]["loss"] for row in metrics}
        curves[name] = [by_step[step] for step in sorted(by_step)]
        values = job["result"]["values"]
        difference = max(
            abs(mine - one) for mine, one in zip(curves[name], curves["one-rank"], strict=True)
        )
        stage.report.values["train"].append(
            {
                "mesh": mesh,
                "loss_first": curves[name][0],
                "loss_last": curves[name][-1],
                "max_abs_loss_difference_to_one_rank": difference,
                "killed_at_step": killed,
                "resumed_at_step": int(values["resumed_at_step"]) if killed else None,
                "tokens_per_second": values["tokens_per_second"],
            }
        )
        if difference > 1e-3 or len(curves[name]) != STEPS:
            message = f"{name}: losses differ by {difference} over {len(curves[name])} steps"
            raise AssertionError(message)
    rows = stage.report.values["train"]
    worst = max(row["max_abs_loss_difference_to_one_rank"] for row in rows)
    first, last = rows[0]["loss_first"], rows[0]["loss_last"]
    return f"loss {first:.3f} -> {last:.3f}; meshes agree within {worst:.1e}; killed and resumed"


def _start_training(stage: Stage, name: str, mesh: dict[str, int]) -> int | None:
    """Run one training job to its end; return the step at which its ranks were killed, if any."""
    degrees = [f"--{axis}={degree}" for axis, degree in mesh.items()]
    shape = "--layers=4 --hidden-size=128 --intermediate-size=384 --attention-heads=4"
    sizes = f"--key-value-heads=2 --context-length=512 --steps={STEPS} --batch-size=8"
    rest = "--sequence-length=128 --learning-rate=0.003 --warmup-steps=4 --seed=7"
    job = stage.admin.json(
        *("job", "train", f"train-{name}", "--output-model", f"small-{name}"),
        *("--dataset", f"projects/{PROJECT}/datasets/tokens/versions/1"),
        *degrees,
        *shape.split(),
        *sizes.split(),
        *rest.split(),
        f"--checkpoint-interval={CHECKPOINT_INTERVAL}",
    )
    killed = _kill_ranks(stage, name, job["uid"]) if name == KILLED else None
    watch = stage.admin.run("job", "watch", f"train-{name}", timeout=900)
    print("     " + "\n     ".join(watch.stdout.strip().splitlines()[-4:]))
    return killed


def _kill_ranks(stage: Stage, name: str, uid: str) -> int:
    """`kill -9` every rank once the job is past its first checkpoint; return the step it was at."""

    def past_checkpoint() -> int | None:
        job = stage.admin.json("job", "get", f"train-{name}", echo=False)
        step = int(job.get("progress", {}).get("step", 0))
        return step if step > CHECKPOINT_INTERVAL else None

    step: int = wait_for(past_checkpoint, "the first checkpoint")
    ranks = processes.ranks_of(uid)
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
    print(f"     kill -9 {' '.join(map(str, ranks))}   # at step {step}")
    return step


def take_in(stage: Stage) -> str:
    """Take in a real model: import, quantize, measure before and after."""
    admin = stage.admin
    imported = admin.json("model", "import", "smollm", str(stage.model))
    quantize = ("--model", imported["name"], "--output-model", "smollm-int8")
    admin.json("job", "quantize", "quantize", *quantize, "--scheme", "w8a8-int8", "--wait")
    perplexity = {}
    for name, model in (("before", "smollm"), ("after", "smollm-int8")):
        job = admin.json(
            *("job", "evaluate", f"evaluate-{name}"),
            *("--model", f"projects/{PROJECT}/models/{model}/versions/1"),
            *("--dataset", f"projects/{PROJECT}/datasets/tokens/versions/1", "--wait"),
        )
        perplexity[name] = job["result"]["values"]["perplexity"]
    stage.report.values["quantize"] = {
        "scheme": "W8A8 int8",
        "perplexity_before": perplexity["before"],
        "perplexity_after": perplexity["after"],
    }
    return f"perplexity {perplexity['before']:.2f} in bfloat16, {perplexity['after']:.2f} in int8"


def serve(stage: Stage) -> str:
    """Serve: two replicas; ask by gRPC, by an OpenAI client and by the command."""
    admin = stage.admin
    model = f"projects/{PROJECT}/models/smollm-int8/versions/1"
    shape = ("--replicas", "2", "--max-sequence-length", "1024", "--cache-bytes", str(1 << 29))
    admin.run("endpoint", "create", "chat", "--model", model, *shape, "--wait")
    status = admin.json("status")
    stage.addresses["grpc"] = status["gateway_address"]
    stage.addresses["openai"] = status["openai_base_url"]
    question = "What is a Python module?"
    by_command = admin.run("ask", CHAT, question, "--max-tokens", "40", "--temperature", "0").stdout
    print(f"     {by_command.strip()}")
    by_openai = _ask_openai(stage, question)
    (by_grpc,) = asyncio.run(answers.ask_all(stage.gateway, CHAT, [question], 40))
    same = by_command.strip() == by_openai.strip() == by_grpc.text.strip()
    return f"three ways of asking, {'one answer' if same else 'answers differ'}"


def _ask_openai(stage: Stage, question: str) -> str:
    """Stream an answer through the unmodified OpenAI client."""
    transport = httpx.Client(verify=str(stage.ca), trust_env=False)
    client = openai.OpenAI(
        base_url=stage.addresses["openai"],
        api_key=stage.token,
        http_client=transport,  # type: ignore[arg-type]  # its stubs name a fork of httpx
    )
    with client:
        stream = client.chat.completions.create(
            model=CHAT,
            messages=[{"role": "user", "content": question}],
            max_tokens=40,
            temperature=0,
            stream=True,
        )
        return "".join(part.choices[0].delta.content or "" for part in stream if part.choices)


def serve_split(stage: Stage) -> str:
    """Serve the trained model tensor-parallel over two cores."""
    admin = stage.admin
    model = f"projects/{PROJECT}/models/small-data2-tensor2/versions/1"
    shape = (
        "--tensor-parallel",
        "2",
        "--max-sequence-length",
        "256",
        "--cache-bytes",
        str(1 << 28),
    )
    admin.run("endpoint", "create", "trained", "--model", model, *shape, "--wait")
    # A model this young writes mostly spaces when it always takes the likeliest token.
    how = ("--raw", "--max-tokens", "48", "--temperature", "0.8", "--seed", "7")
    text = " ".join(admin.run("ask", TRAINED, "The module provides", *how).stdout.split())
    if not text:
        message = "the trained model answered nothing"
        raise AssertionError(message)
    admin.run("endpoint", "delete", "trained", "--wait")
    return f"after {STEPS} steps it says: {text[:60]}"


def break_replica(stage: Stage) -> str:
    """Kill -9 a replica while 16 answers stream."""

    def ask() -> list[answers.Answer]:
        return asyncio.run(answers.ask_all(stage.gateway, CHAT, answers.PROMPTS, answers.TOKENS))

    first, second = ask(), ask()
    disturbed, killed_at, back = _ask_and_kill(stage)
    failed = sum(1 for answer in disturbed if answer.error)
    truncated = sum(1 for answer in disturbed if len(answer.tokens) != answers.TOKENS)
    same = sum(a.tokens == b.tokens for a, b in zip(first, disturbed, strict=True))
    undisturbed = sum(a.tokens == b.tokens for a, b in zip(first, second, strict=True))
    continued = sum(answer.continuations > 0 for answer in disturbed)
    stage.report.values["serve"] = {
        "replicas": 2,
        "tensor_parallel": 2,
        "requests": len(disturbed),
        "failed": failed,
        "truncated": truncated,
        "identical": same,
        "undisturbed_identical": undisturbed,
        "continued": continued,
        "replica_back_seconds": round(back, 1),
    }
    if failed or truncated or not continued:
        message = f"{failed} failed, {truncated} truncated, {continued} continued: {disturbed}"
        raise AssertionError(message)
    return (
        f"killed after {killed_at} pieces: 0 failed, 0 cut, {continued} continued, {same} identical"
        f" ({undisturbed} without the kill); back after {back:.0f} s"
    )


def _ask_and_kill(stage: Stage) -> tuple[list[answers.Answer], int, float]:
    """Ask 16 at once and kill a worker; return answers, pieces before it, seconds to READY."""
    endpoint = stage.admin.json("endpoint", "get", "chat")
    before = {replica["id"]: int(replica["epoch"]) for replica in endpoint["replica_status"]}
    victims = processes.workers_of(endpoint["uid"])
    killed: list[float] = []
    pieces = 0

    def on_piece() -> None:
        nonlocal pieces
        pieces += 1
        if pieces == len(answers.PROMPTS) * 8:
            print(f"     kill -9 {victims[0]}   # one of the two workers")
            os.kill(victims[0], signal.SIGKILL)
            killed.append(time.monotonic())

    result = asyncio.run(
        answers.ask_all(stage.gateway, CHAT, answers.PROMPTS, answers.TOKENS, on_piece)
    )

    def back() -> bool:
        now = stage.admin.json("endpoint", "get", "chat", echo=False)
        replicas = now["replica_status"]
        renewed = any(int(replica["epoch"]) > before[replica["id"]] for replica in replicas)
        return renewed and now["state"] == "STATE_READY"

    wait_for(back, "the replica to come back", timeout=240)
    return result, len(answers.PROMPTS) * 8, time.monotonic() - killed[0]


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 300) -> Any:
    """Return the first true result of `condition`, asked twice a second.

    Raises:
        TimeoutError: it stayed false for `timeout` seconds.
    """
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.5)
    message = f"waited {timeout} s for {what}"
    raise TimeoutError(message)


def _free_ports() -> int:
    """Return the first port of a block of ten that nobody listens on."""
    for base in range(17440, 18440, 20):
        if all(_is_free(port) for port in range(base, base + 10)):
            return base
    message = "no free block of ports between 17440 and 18440"
    raise OSError(message)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


JOURNEY = (bring_up, log_in, prepare, train, take_in, serve, serve_split, break_replica)
