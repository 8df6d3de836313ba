"""What the lab shows: the playbook converges, nodes join, a job crosses two servers.

Each step is a function of the `Lab`: its docstring is its name, its result says what happened. The
result of all of it is build/lab.json. Run by `ansible/lab/run.sh`, inside the lab's network.
"""

from __future__ import annotations

import json
import os
import pydoc_data.topics
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.demo.report import Report
from deploy.demo.terminal import Terminal

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "lab"
PROGRAMS = ROOT / ".venv" / "bin"
INVENTORY = ROOT / "ansible" / "lab" / "inventory.yml"
HEAD, NODES = "head", ("node1", "node2")
HEAD_ADDRESS = "10.77.0.11"
UNITS = {
    HEAD: ("appliance-control.service", "appliance-gateway.service"),
    **dict.fromkeys(NODES, ("appliance-agent.service",)),
}
EXPOSURE = 2.0
STEPS = 8


class StepFailedError(Exception):
    """A step did not show what it should."""


class Lab:
    """The servers as this machine sees them, and what later steps need of earlier ones."""

    def __init__(self) -> None:
        self.report = Report(ROOT / "build" / "lab.json")
        self.values = self.report.values = {}
        self.home = WORK / "home"
        self.admin = Terminal(PROGRAMS / "appliance", self.home)
        self.password = secrets.token_urlsafe(18)
        self.password_file = WORK / "password"
        self.password_file.touch(mode=0o600)
        self.password_file.write_text(self.password + "\n")

    def ansible(self, *arguments: str, timeout: float = 2400) -> str:
        """Run a program of Ansible; what it printed.

        Raises:
            StepFailedError: it failed; the message holds the end of what it printed.
        """
        code, output = self.tried(*arguments, timeout=timeout)
        if code:
            message = f"{' '.join(arguments)} ended with {code}:\n{output[-4000:]}"
            raise StepFailedError(message)
        return output

    def tried(self, *arguments: str, timeout: float = 2400) -> tuple[int, str]:
        """Run a program of Ansible, and say its tasks as they come; its exit code and output."""
        name, *rest = arguments
        process = subprocess.Popen(
            [str(PROGRAMS / name), "--inventory", str(INVENTORY), *rest],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.home),
                "LANG": "C.UTF-8",
                "ANSIBLE_CONFIG": str(ROOT / "ansible" / "ansible.cfg"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        end = threading.Timer(timeout, process.kill)
        end.start()
        lines = []
        try:
            for line in process.stdout or ():
                lines.append(line)
                if line.startswith(("PLAY [", "TASK [")):
                    print(f"     {line.partition(']')[0]}]", flush=True)
        finally:
            end.cancel()
            process.wait()
        return process.returncode, "".join(lines)

    def on(self, server: str, command: str) -> str:
        """What a shell command on a server prints."""
        answer = self.ansible(
            *("ansible", server, "--one-line", "--module-name", "ansible.builtin.shell"),
            *("--args", command),
            timeout=120,
        )
        return answer.partition("(stdout)")[2].strip().replace("\\n", "\n")

    def converge(self, name: str) -> dict[str, dict[str, int]]:
        """Run the playbook, keep its output, return its recap."""
        output = self.ansible("ansible-playbook", "-vvv", "ansible/site.yml")
        (WORK / f"{name}.log").write_text(output)
        recap = {
            match[1]: {key: int(number) for key, number in re.findall(r"(\w+)=(\d+)", match[2])}
            for match in re.finditer(r"^(\w+)\s+: (ok=.*)$", output, re.MULTILINE)
        }
        for host, numbers in recap.items():
            print(f"     {host:6} " + " ".join(f"{key}={value}" for key, value in numbers.items()))
        return recap


def refuse(lab: Lab) -> str:
    """Refuse a name that is none for a node, and a memory file system that runs no programs."""
    said = []
    wrong = WORK / "wrong.yml"
    wrong.write_text("all: {children: {nodes: {hosts: {Node_3: {ansible_host: 10.77.0.13}}}}}\n")
    said.append(_refused(lab, "--inventory", str(wrong), sentence="Node_3 is no name for a node"))
    if lab.on(HEAD, "ls -d /opt/appliance 2>/dev/null | wc -l") != "0":
        message = "a playbook that was refused has changed a server"
        raise StepFailedError(message)
    lab.on("node2", "mount -o remount,noexec /dev/shm")
    said.append(_refused(lab, sentence="on node2 is mounted noexec"))
    lab.on("node2", "mount -o remount,exec /dev/shm")
    return "; ".join(said)


def stay_red(lab: Lab) -> str:
    """A node whose agent ends again and again keeps the playbook red, and says why."""
    folder = "/etc/systemd/system/appliance-agent.service.d"
    lab.on("node2", f"printf '[Service]\\nExecStartPre=/bin/false\\n' >{folder}/zz-broken.conf")
    lab.on("node2", "systemctl daemon-reload; systemctl restart appliance-agent || true")
    # Half of an environment, as an interrupted run leaves it: the next run makes it anew.
    lab.on("node1", "rm $(readlink -f /opt/appliance/current)/.complete")
    red = _refused(
        lab, "--extra-vars", '{"agent_ready_seconds": 30}', sentence="node2 is not READY"
    )
    lab.on("node2", f"rm {folder}/zz-broken.conf; systemctl daemon-reload")
    lab.on("node2", "systemctl reset-failed appliance-agent; systemctl restart appliance-agent")
    lab.converge("converge-3")
    if lab.on("node1", "ls $(readlink -f /opt/appliance/current)/.complete | wc -l") != "1":
        message = "an environment that was half made stays so"
        raise StepFailedError(message)
    return f"{red}; green again, the half-made environment of node1 made anew"


def _refused(lab: Lab, *arguments: str, sentence: str) -> str:
    """Run the playbook, which has to fail and to say a sentence."""
    code, output = lab.tried("ansible-playbook", *arguments, "ansible/site.yml")
    if code == 0 or sentence not in re.sub(r"\s+", " ", output):
        message = f"the playbook ended with {code} and did not say {sentence!r}:\n{output[-3000:]}"
        raise StepFailedError(message)
    return f'"{sentence}"'


def converge(lab: Lab) -> str:
    """Install everything with the playbook."""
    recap = lab.values["recap"] = lab.converge("converge-1")
    return f"{sum(host['changed'] for host in recap.values())} changes on {len(recap)} servers"


def converge_again(lab: Lab) -> str:
    """Run the playbook again: it changes nothing."""
    # Only the first run needs it.
    lab.password_file.unlink()
    recap = lab.values["second_recap"] = lab.converge("converge-2")
    changed = lab.values["second_run_changed"] = sum(host["changed"] for host in recap.values())
    if changed:
        message = f"the second run changed {changed} things: see {WORK}/converge-2.log"
        raise StepFailedError(message)
    return "0 changes"


def exposure(lab: Lab) -> str:
    """Measure what the services may do."""
    scores = lab.values["exposure"] = {}
    for server, units in UNITS.items():
        for unit in units:
            said = lab.on(server, f"systemd-analyze security --no-pager {unit} | tail -n 1")
            found = re.search(r": ([0-9.]+) ", said)
            active = lab.on(server, f"systemctl is-active {unit}")
            if found is None or float(found[1]) >= EXPOSURE or active != "active":
                message = f"{unit} on {server} is {active}: {said}"
                raise StepFailedError(message)
            scores[f"{server}:{unit.removesuffix('.service')}"] = float(found[1])
    return ", ".join(f"{name} {score}" for name, score in scores.items())


def secrecy(lab: Lab) -> str:
    """Look for secrets where none may be."""
    outputs = [(WORK / f"converge-{run}.log").read_text() for run in (1, 2)]
    if any(secret in output for output in outputs for secret in (lab.password, "sla_join_")):
        message = f"Ansible printed a secret: see {WORK}/converge-*.log"
        raise StepFailedError(message)
    for server in UNITS:
        if found := lab.on(server, _search()):
            message = f"a secret on {server}: {found}"
            raise StepFailedError(message)
    if not lab.on(HEAD, _search(planted=True)):
        message = "the search finds nothing, not even a planted token"
        raise StepFailedError(message)
    files = (
        "/var/lib/appliance-control/data/root.key /var/lib/appliance-gateway/state/identity.json"
    )
    modes = lab.on(HEAD, f"stat -c '%n %a %U' {files}")
    lab.values["secrets_found"] = 0
    return "none in Ansible's output, arguments, environments and journals; " + "; ".join(
        line.rpartition("/")[2] for line in modes.splitlines()
    )


def _search(*, planted: bool = False) -> str:
    """A shell command that names files and lines with secrets of the appliance.

    Its patterns lie in a file and are put together there, so that it does not find itself; with
    `planted` there is something to find.
    """
    plant = 'env "X=sla_""join_planted" sleep 20 & sleep 1; ' if planted else ""
    return (
        "p=$(mktemp); printf 'sla_''join_' >$p; printf '\\n-----BEGIN %s KEY' PRIVATE >>$p; "
        f"{plant}"
        "{ grep -l -a -F -f $p /proc/[0-9]*/cmdline /proc/[0-9]*/environ; "
        "journalctl --no-pager | grep -F -f $p; } 2>/dev/null | head -n 3; rm $p"
    )


def log_in(lab: Lab) -> str:
    """Log in from another machine of the network; both nodes are ready."""
    authority = WORK / "ca.pem"
    authority.write_text(lab.on(HEAD, "cat /var/lib/appliance-control/data/ca.pem") + "\n")
    lab.admin.run(
        *("context", "add", "lab", "--server", f"{HEAD_ADDRESS}:7443", "--ca", str(authority))
    )
    lab.admin.first_login("admin", lab.password)
    lab.admin.run("project", "create", "lab")
    lab.admin.run("context", "set-project", "lab")

    def ready() -> list[dict[str, Any]] | None:
        nodes: list[dict[str, Any]] = lab.admin.json("node", "list")
        found = {node["name"] for node in nodes if node["state"] == "STATE_READY"}
        return nodes if found == {f"nodes/{name}" for name in NODES} else None

    nodes = lab.values["nodes"] = _wait_for(ready, "both nodes ready", 120)
    return ", ".join(f"{node['name']} at {node['address']}" for node in nodes)


def prepare(lab: Lab) -> str:
    """Upload text and prepare it on a node."""
    corpus = WORK / "corpus"
    corpus.mkdir(exist_ok=True)
    for name, text in sorted(pydoc_data.topics.topics.items()):
        (corpus / f"{name}.txt").write_text(text)
    lab.admin.run("dataset", "create", "topics")
    raw = lab.admin.json("dataset", "upload", "topics", str(corpus))
    job = lab.admin.json(
        *("job", "prepare", "prepare", "--dataset", raw["name"], "--output-dataset", "tokens"),
        *("--output-tokenizer", "bpe", "--vocabulary-size", "1024", "--wait", "--timeout", "15m"),
        timeout=1000,
    )
    values = job["result"]["values"]
    return f"{values['kept']:.0f} documents, {values['tokens']:.0f} tokens"


def train(lab: Lab) -> str:
    """Train over two ranks, one on each server."""
    shape = (
        "--layers=4 --hidden-size=64 --intermediate-size=128 --attention-heads=4 "
        "--key-value-heads=2 --context-length=128 --sequence-length=64 --batch-size=4 "
        f"--steps={STEPS} --warmup-steps=2 --checkpoint-interval=4 --seed=7 --data=2"
    )
    job = lab.admin.json(
        *("job", "train", "train", "--output-model", "small"),
        *("--dataset", "projects/lab/datasets/tokens/versions/1", *shape.split()),
        *("--wait", "--timeout", "15m"),
        timeout=1000,
    )
    found = f"ls /var/lib/appliance-agent/state/runs | grep -c '^{job['uid']}'"
    ran_on = [node for node in NODES if lab.on(node, found) == "1"]
    rows = lab.admin.json("job", "metrics", "train")
    losses = {int(row["step"]): row["values"]["loss"] for row in rows if "loss" in row["values"]}
    lab.values["job"] = {
        "state": job["state"].removeprefix("STATE_"),
        "nodes": ran_on,
        "steps": len(losses),
        "loss_first": losses[min(losses)],
        "loss_last": losses[max(losses)],
    }
    if lab.values["job"]["state"] != "SUCCEEDED" or ran_on != list(NODES) or len(losses) != STEPS:
        raise StepFailedError(json.dumps(lab.values["job"]))
    first, last = losses[min(losses)], losses[max(losses)]
    return f"on {' and '.join(ran_on)}, loss {first:.3f} -> {last:.3f}"


def _wait_for(look: Callable[[], Any], what: str, seconds: float) -> Any:
    """The first result that is one. Raises StepFailedError after `seconds`."""
    end = time.monotonic() + seconds
    while (found := look()) is None:
        if time.monotonic() > end:
            message = f"after {seconds:.0f} seconds still not: {what}"
            raise StepFailedError(message)
        time.sleep(2)
    return found


JOURNEY = (
    refuse,
    converge,
    converge_again,
    log_in,
    prepare,
    train,
    stay_red,
    exposure,
    secrecy,
)


def main() -> int:
    """Make every step until one fails; 0 when none did."""
    lab = Lab()
    report = lab.report
    ok = all(report.run(step, lab) for step in JOURNEY)
    report.write()
    report.print_table()
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
