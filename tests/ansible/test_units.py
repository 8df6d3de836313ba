"""The units: as closed as promised, as open as the processes need, each process its own user."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
NAMES = ("appliance-agent.service", "appliance-control.service", "appliance-gateway.service")


def settings(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_there_is_one_unit_for_each_process() -> None:
    assert tuple(sorted(path.name for path in UNITS.iterdir())) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_exposure_stays_below_two(name: str) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd is not installed")
    done = subprocess.run(
        [program, "security", "--offline=true", "--threshold=20", "--no-pager", UNITS / name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    score = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert score is not None
    assert float(score[1]) < 2.0


@pytest.mark.parametrize("name", NAMES)
def test_it_starts_a_module_that_exists_and_imports_nothing_from_its_folder(name: str) -> None:
    (start,) = settings(name)["ExecStart"]
    program, isolated, option, module, *_ = start.split()
    assert (program, isolated, option) == ("/opt/appliance/current/bin/python", "-P", "-m")
    assert importlib.util.find_spec(f"{module}.__main__") is not None


def test_each_process_is_a_user_of_its_own() -> None:
    assert len({settings(name)["User"][0] for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_no_unit_carries_a_secret_or_an_address_of_a_site(name: str) -> None:
    found = settings(name)
    assert "EnvironmentFile" not in found
    assert [v for v in found.get("Environment", []) if not v.startswith("HOME=")] == []
    assert found["IPAddressDeny"] == ["any"]
    assert found["IPAddressAllow"] == ["localhost"]


def test_the_agent_sees_processes_and_its_work_may_compile_kernels() -> None:
    agent = settings("appliance-agent.service")
    assert agent["ProtectProc"] == ["default"]
    assert "MemoryDenyWriteExecute" not in agent
    for name in set(NAMES) - {"appliance-agent.service"}:
        assert settings(name)["ProtectProc"] == ["invisible"]
        assert settings(name)["MemoryDenyWriteExecute"] == ["yes"]
