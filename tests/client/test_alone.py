"""The SDK needs the base dependencies of the package alone, and nothing of the server.

Once with this environment from which everything else is taken away, and once with a wheel that is
installed into an environment of its own, as an application does.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from appliance.api.inference.v1.inference_service_pb2 import GenerateResponse
from appliance.api.system.v1.system_service_pb2 import GetSystemResponse
from tests.fakes.control_api import FakeApi
from tests.fakes.gang import ROOT
from tests.fakes.without import virtual_environment

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PROGRAM = """
import sys
from appliance.client import Appliance, AsyncAppliance, JobFailed
from appliance.client import transfers

address, ca = sys.argv[1:]
with Appliance(address, ca=ca, token="t", project="p") as appliance:
    print(appliance.ask("chat", "Who?").text)
mine = sorted({name.split(".")[1] for name in sys.modules if name.startswith("appliance.")})
print(" ".join(mine))
"""
TYPED = """
from appliance.client import Appliance

appliance = Appliance.from_context()
name: str = appliance.jobs.create("x", job={"train": {}}).name
texts: list[str] = [answer.text for answer in [appliance.ask("chat", "Who?", max_tokens=3)]]
appliance.ask("chat", "Who?", max_tokens="three")
appliance.nosuch.get("x")
"""


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return found[0].lower().replace("_", "-").replace(".", "-")


def closure(names: set[str]) -> set[str]:
    """Distributions, and what they require."""
    seen: set[str] = set()
    while names:
        name = names.pop()
        # What is for other systems is not installed.
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        seen.add(name)
        names |= {name_of(each) for each in required if "extra ==" not in each} - seen
    return seen


def everything_else() -> set[str]:
    """Modules here that no base dependency brings."""
    base = closure({name_of(each) for each in PROJECT["dependencies"]})
    tops = importlib.metadata.packages_distributions()
    return {
        module
        for module, owners in tops.items()
        if module != "appliance" and not base & {name_of(owner) for owner in owners}
    }


def served(api: FakeApi, folder: Path) -> list[str]:
    """Answers, and the arguments of the program."""
    api.answers["SystemService.GetSystem"] = GetSystemResponse(gateway_address=api.gateway_address)
    api.answers["InferenceService.Generate"] = [GenerateResponse(text="Nobody.")]
    (folder / "ca.pem").write_bytes(api.ca_pem)
    return [api.address, str(folder / "ca.pem")]


def run(
    python: Path | str, *arguments: str, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "XDG_CONFIG_HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_it_asks_where_nothing_else_is_installed(api: FakeApi, tmp_path: Path) -> None:
    missing = everything_else()
    assert {"click", "sqlalchemy", "casbin", "uvicorn", "msgspec", "yaml", "torch"} <= missing | {
        "torch"
    }
    python = virtual_environment(tmp_path / "alone", *missing)
    done = run(python, "-c", PROGRAM, *served(api, tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["Nobody.", "api client core crypto wire"]


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    python = virtual_environment(tmp_path / "alone", *everything_else())
    done = run(python, "-c", "from appliance.cli import run; run()")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the command needs more packages than the Python SDK")
    assert "install `appliance[cli]`" in done.stderr


def test_the_command_needs_its_extra_alone(tmp_path: Path) -> None:
    extra = closure({name_of(each) for each in PROJECT["optional-dependencies"]["cli"]})
    tops = importlib.metadata.packages_distributions()
    mine = {m for m, owners in tops.items() if extra & {name_of(owner) for owner in owners}}
    python = virtual_environment(tmp_path / "person", *(everything_else() - mine))
    for line in ("--help", "job train --help", "context list", "job create --help"):
        script = (
            f"import sys; sys.argv[1:] = {line.split()!r}; from appliance.cli import run; run()"
        )
        done = run(python, "-c", script)
        assert (done.returncode, done.stderr) == (0, ""), line


@pytest.mark.timeout(600)
def test_a_wheel_in_an_environment_of_its_own_asks_and_is_typed(
    api: FakeApi, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("appliance", "policies", "pyproject.toml", "LICENSE", "README.md"):
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, copy / name)
    quiet = ("-m", "pip", "--disable-pip-version-check", "--quiet")
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path))
    built = run(sys.executable, *quiet, "wheel", *options, str(copy))
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("appliance-*.whl")
    assert run(sys.executable, "-m", "venv", str(tmp_path / "its")).returncode == 0
    python = tmp_path / "its/bin/python"
    installed = subprocess.run(
        [str(python), *quiet, "install", str(wheel)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if "No matching distribution" in installed.stderr or "retries" in installed.stderr.lower():
        pytest.skip("there is no package index here")
    assert installed.returncode == 0, installed.stderr
    listed = run(python, "-m", "pip", "list", "--format=freeze").stdout
    names = {name_of(line) for line in listed.split()} - {"pip", "setuptools", "appliance"}
    assert names == closure({name_of(each) for each in PROJECT["dependencies"]})
    done = run(python, "-c", PROGRAM, *served(api, tmp_path))
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        ["Nobody.", "api client core crypto wire"],
    ), done.stderr
    if importlib.util.find_spec("mypy") is not None:
        _check_typed(python, tmp_path)


def _check_typed(python: Path, folder: Path) -> None:
    """A program that mypy reads with the installed package; its two mistakes are found."""
    (folder / "typed.py").write_text(TYPED)
    options = ("--strict", "--python-executable", str(python), "--cache-dir", str(folder / "cache"))
    typed = run(sys.executable, "-m", "mypy", *options, "typed.py", folder=folder)
    errors = [line for line in typed.stdout.splitlines() if ": error:" in line]
    assert [re.sub(r"^.*?:(\d+): .*\[(.*)\]$", r"\1 \2", line) for line in errors] == [
        "7 arg-type",
        "8 attr-defined",
    ], typed.stdout
