"""Contexts and sessions in the user's configuration folder.

`contexts.json` names the servers a person uses: address, CA certificate, default project, and which
of them is current. The token of a session lies in a file of its own, 0600, and so does what a
server knows this device by, for each user. Nothing secret is in `contexts.json`; a context can be
copied to a colleague.

Rule kept here: whoever is about to get something that is shown once asks first whether it can be
kept (`check_writable`).
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TypedDict

from appliance.core.errors import FailedPrecondition, NotFound
from appliance.core.files import make_private_dir, read_secret, write_durably
from appliance.core.names import check_id, is_id


@dataclass(frozen=True)
class Profile:
    """One context: a server as one person uses it."""

    name: str
    server: str
    ca_pem: str
    project: str = ""
    user: str = ""


class _Document(TypedDict):
    current: str
    contexts: list[dict[str, str]]


class Profiles:
    """Reads and writes contexts below `folder` (default: $XDG_CONFIG_HOME/appliance)."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or _default()
        self._file = self._folder / "contexts.json"

    def check_writable(self) -> None:
        """Raise FailedPrecondition, with what to do, when nothing can be kept in the folder."""
        self._read()
        for folder in (self._folder, self._folder / "sessions", self._folder / "devices"):
            with self._keeping(), tempfile.TemporaryFile(dir=make_private_dir(folder)):
                pass

    def all(self) -> list[Profile]:
        """Every context, by name."""
        return [Profile(**entry) for entry in self._read()["contexts"]]

    @property
    def current(self) -> str:
        """Name of the context in use; empty when there is none."""
        return str(self._read()["current"])

    def get(self, name: str = "") -> Profile:
        """The named context, or the current one.

        Raises:
            NotFound: there is none of that name.
            FailedPrecondition: no context is in use.
        """
        wanted = name or self.current
        if not wanted:
            known = [profile.name for profile in self.all()]
            raise FailedPrecondition(
                "No server is chosen: `appliance context use NAME` takes one of "
                f"{', '.join(known)}."
                if known
                else "No server is chosen: add one with "
                "`appliance context add NAME --server HOST:PORT --ca FILE`."
            )
        for profile in self.all():
            if profile.name == wanted:
                return profile
        near = get_close_matches(wanted, [profile.name for profile in self.all()], n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise NotFound(f"There is no context {wanted!r}: see `appliance context list`.{meant}")

    def put(self, profile: Profile, *, use: bool = True) -> None:
        """Add or replace a context; `use` makes it the current one."""
        check_id(profile.name, "name")
        others = [each for each in self.all() if each.name != profile.name]
        self._write([*others, profile], profile.name if use else self.current)

    def use(self, name: str) -> None:
        """Make a context the current one."""
        self._write(self.all(), self.get(name).name)

    def set_project(self, project: str, name: str = "") -> Profile:
        """Choose the project that short names belong to."""
        profile = replace(self.get(name), project=project)
        self.put(profile, use=profile.name == self.current)
        return profile

    def remove(self, name: str) -> None:
        """Forget a context, its session, and what the server knows this device by."""
        gone = self.get(name)
        self.forget_token(gone)
        self.forget_devices(gone)
        rest = [each for each in self.all() if each.name != gone.name]
        self._write(rest, "" if self.current == gone.name else self.current)

    def token(self, profile: Profile) -> str:
        """The session's token; empty when nobody is logged in."""
        path = self._token_file(profile)
        return read_secret(path).decode().strip() if path.exists() else ""

    def keep_token(self, profile: Profile, token: str) -> None:
        """Keep the token of a session, 0600."""
        self._keep(self._token_file(profile), token.encode())

    def forget_token(self, profile: Profile) -> None:
        """Forget the session's token."""
        with self._keeping():
            self._token_file(profile).unlink(missing_ok=True)

    def device(self, profile: Profile, user: str) -> str:
        """What the server knows this device by, for a user; empty when it does not."""
        path = self._device_file(profile, user)
        return read_secret(path).decode().strip() if is_id(user) and path.exists() else ""

    def keep_device(self, profile: Profile, user: str, token: str) -> None:
        """Keep what the server knows this device by from now on, 0600; nothing for no user's id."""
        if not is_id(user):
            return
        self._keep(self._device_file(profile, user), token.encode())

    def forget_devices(self, profile: Profile) -> None:
        """Be an unknown device again, for every user."""
        with self._keeping():
            for path in (self._folder / "devices").glob(f"{profile.name}.*"):
                path.unlink(missing_ok=True)

    def _device_file(self, profile: Profile, user: str) -> Path:
        # An id has no dot: two contexts never share a file.
        return self._folder / "devices" / f"{profile.name}.{user}"

    def _token_file(self, profile: Profile) -> Path:
        return self._folder / "sessions" / profile.name

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[None]:
        """Within it, a folder that cannot be written is one sentence."""
        try:
            yield
        except OSError as error:
            raise FailedPrecondition(
                f"contexts and sessions cannot be kept in {self._folder} ({error.strerror}): set "
                "XDG_CONFIG_HOME to a folder that this user may write, then repeat"
            ) from error

    def _keep(self, path: Path, data: bytes) -> None:
        with self._keeping():
            make_private_dir(path.parent)
            write_durably(path, data)

    def _read(self) -> _Document:
        try:
            document = json.loads(self._file.read_bytes())
            return {"current": document["current"], "contexts": document["contexts"]}
        except (FileNotFoundError, NotADirectoryError):
            return {"current": "", "contexts": []}
        except OSError as error:
            raise FailedPrecondition(f"{self._file} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise FailedPrecondition(
                f"{self._file} cannot be read: fix or remove it, then add your contexts again."
            ) from error

    def _write(self, profiles: list[Profile], current: str) -> None:
        entries = sorted((asdict(each) for each in profiles), key=lambda entry: entry["name"])
        document = {"current": current, "contexts": entries}
        self._keep(self._file, json.dumps(document, indent=2).encode() + b"\n")


def _default() -> Path:
    try:
        home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    except RuntimeError as error:
        raise FailedPrecondition(
            "this user has no home: set XDG_CONFIG_HOME to a folder that it may write"
        ) from error
    return Path(home) / "appliance"
