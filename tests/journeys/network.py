"""A second server's network on this machine: a namespace, joined to ours by a pair of interfaces.

What comes from there really crosses a network, so it can be cut: packets of the ports that are cut
are dropped without a word, both ways, as a firewall or a torn cable does. Needs root, iproute2 and
nftables; where they are missing, what needs it is skipped by name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

_TOOLS = ("ip", "nft", "nsenter")


@dataclass(frozen=True)
class Network:
    """A namespace `name` with the address `there`, joined to this machine's address `here`."""

    name: str
    here: str
    there: str

    @property
    def interface(self) -> str:
        """This machine's end."""
        return self.name[:15]

    def inside(self, *command: str) -> list[str]:
        """The command line that runs a command there."""
        return ["nsenter", f"--net=/run/netns/{self.name}", *command]

    @contextmanager
    def cut(self, ports: Sequence[int], *, everybody: bool = False) -> Iterator[None]:
        """Nothing that comes from there reaches these ports of ours, and nothing of them goes back.

        `everybody`: nor what comes from this machine itself.
        """
        table, numbers = f"cut_{self.name}", ", ".join(map(str, ports))
        ways = ('iifname "{}" ', 'oifname "{}" ')
        come, go = ("", "") if everybody else (way.format(self.interface) for way in ways)
        rules = (
            f"table inet {table} {{\n"
            " chain come { type filter hook input priority 0;"
            f" {come}tcp dport {{ {numbers} }} drop; }}\n"
            " chain go { type filter hook output priority 0;"
            f" {go}tcp sport {{ {numbers} }} drop; }}\n}}\n"
        )
        subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
        try:
            yield
        finally:
            subprocess.run(["nft", "delete", "table", "inet", table], check=True)


@contextmanager
def joined() -> Iterator[Network]:
    """A network from its making to its end; skips by name where none can be made."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid():
        needs = " and ".join([*([] if os.geteuid() == 0 else ["root"]), *missing])
        pytest.skip(f"a second network needs {needs} (packages iproute2, nftables, util-linux)")
    number = os.getpid() % 250
    network = Network(f"appliance-{os.getpid()}", f"10.213.{number}.1", f"10.213.{number}.2")
    inside = network.inside
    try:
        _run("ip", "netns", "add", network.name)
        _run(
            *("ip", "link", "add", network.interface, "type", "veth"),
            *("peer", "name", "eth0", "netns", network.name),
        )
        _run("ip", "address", "add", f"{network.here}/30", "dev", network.interface)
        _run("ip", "link", "set", network.interface, "up")
        _run(*inside("ip", "address", "add", f"{network.there}/30", "dev", "eth0"))
        for interface in ("lo", "eth0"):
            _run(*inside("ip", "link", "set", interface, "up"))
        yield network
    finally:
        subprocess.run(["ip", "netns", "delete", network.name], check=False)
        # It goes with the namespace, but not at once.
        command = ["ip", "link", "delete", network.interface]
        subprocess.run(command, capture_output=True, check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
