"""Where an appliance is and who calls it: what a program is told, or finds.

Rules kept here: a token is in no repr, and its file is read as a secret, 0600 and its caller's own;
what cannot work is said when it is given, with a sentence that says what to write.

Called by `appliance.client.Appliance` and its twin for asyncio.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.client.profiles import Profiles
from appliance.core.addresses import is_host, split_address
from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.core.files import read_secret

SERVER, CA_FILE, PROJECT = "APPLIANCE_SERVER", "APPLIANCE_CA_FILE", "APPLIANCE_PROJECT"
GATEWAY, CONTEXT = "APPLIANCE_GATEWAY", "APPLIANCE_CONTEXT"
TOKEN_FILE = "APPLIANCE_TOKEN_FILE"  # noqa: S105 - names a variable


class TokenSource:
    """A bearer token, and where the next one is when it was rotated.

    Args:
        read: the token as it is now. Raises ApplianceError when there is none to be read.
    """

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read
        self._token: str | None = None
        self._lock = threading.Lock()

    @property
    def token(self) -> str:
        """The token in use."""
        with self._lock:
            if self._token is None:
                self._token = self._read()
            return self._token

    def renew(self, refused: str) -> bool:
        """Whether there is another token than the one that was refused; it is in use then."""
        with self._lock:
            if self._token == refused:
                self._token = self._read()
            return self._token != refused


@dataclass(frozen=True)
class Target:
    """One appliance as one caller.

    Attributes:
        server: `host:port` of the control plane; empty: only the gateway is called.
        ca_pem: the appliance's CA certificate; no other authority is believed.
        credential: who calls.
        project: short names belong to it; may be empty.
        gateway: `host:port` of the gateway; empty: what the control plane says.
    """

    server: str
    ca_pem: bytes
    credential: TokenSource
    project: str = ""
    gateway: str = ""


def given(
    server: str,
    ca: str | os.PathLike[str] | bytes,
    token: str,
    token_file: str | os.PathLike[str],
    project: str,
    gateway: str,
) -> Target:
    """From the arguments of a program. Raises InvalidInput for what cannot be."""
    if not server and not gateway:
        raise InvalidInput("server: write HOST:PORT of the control plane, such as [::1]:7443")
    for setting, address in (("server", server), ("gateway", gateway)):
        if address:
            _check_address(setting, address)
    if bool(token) == bool(os.fspath(token_file)):
        raise InvalidInput("token_file: give the file of a token, or the token itself, not both")
    return Target(server, _certificate(ca), _credential(token, token_file), project, gateway)


def of_context(name: str, project: str, surroundings: Mapping[str, str]) -> Target:
    """From a context of the command, and the token of its session.

    `$APPLIANCE_TOKEN_FILE` counts instead of the session. Raises NotFound or FailedPrecondition
    when there is no such context, or nobody is logged in.
    """
    profiles = Profiles()
    profile = profiles.get(name or surroundings.get(CONTEXT, ""))
    file = surroundings.get(TOKEN_FILE, "")

    def session() -> str:
        token = profiles.token(profile)
        if not token:
            raise FailedPrecondition(
                f"nobody is logged in to the context {profile.name}: `appliance login`, or set "
                f"{TOKEN_FILE} to the file of an application's token"
            )
        return token

    credential = _credential("", file) if file else TokenSource(session)
    wanted = project or surroundings.get(PROJECT, "") or profile.project
    gateway = surroundings.get(GATEWAY, "")
    return Target(profile.server, profile.ca_pem.encode(), credential, wanted, gateway)


def of_environment(surroundings: Mapping[str, str]) -> Target:
    """From the environment; without a server in it, from the context that it names.

    Raises InvalidInput, NotFound or FailedPrecondition.
    """
    server, gateway = surroundings.get(SERVER, ""), surroundings.get(GATEWAY, "")
    if not server and CA_FILE not in surroundings:
        return of_context("", "", surroundings)
    missing = [name for name in (CA_FILE, TOKEN_FILE) if not surroundings.get(name)]
    if missing:
        raise FailedPrecondition(
            f"{SERVER} is set, and {' and '.join(missing)} are not: set them too"
            if server
            else f"{CA_FILE} is set: set {SERVER} and {TOKEN_FILE} too"
        )
    return given(
        server,
        surroundings[CA_FILE],
        "",
        surroundings[TOKEN_FILE],
        surroundings.get(PROJECT, ""),
        gateway,
    )


def _check_address(setting: str, address: str) -> None:
    host, port = split_address(address, setting)
    if not is_host(host) or not port:
        raise InvalidInput(
            f"{setting}: {address!r} is no HOST:PORT with a port from 1 to 65535, such as "
            "appliance.example:7443 or [::1]:7443"
        )


def _certificate(ca: str | os.PathLike[str] | bytes) -> bytes:
    if isinstance(ca, bytes):
        pem, where = ca, "ca"
    else:
        where = f"ca: {os.fspath(ca)}"
        try:
            pem = Path(ca).read_bytes()
        except OSError as error:
            raise InvalidInput(f"{where} cannot be read ({error.strerror})") from error
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise InvalidInput(f"{where} is no PEM certificate: take ca.pem of the appliance")
    return pem


def _credential(token: str, token_file: str | os.PathLike[str]) -> TokenSource:
    if token:
        return TokenSource(lambda: token)
    path = Path(token_file)
    return TokenSource(lambda: read_secret(path).decode().strip())
