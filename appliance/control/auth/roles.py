"""The roles, every permission in words and where it is decided, and the policy model.

Rules kept here:
* the files are checked when they are read, so a typing error in one stops the start instead of
  changing who may do what;
* each role lists its permissions one by one, without wildcards;
* each permission is decided on the platform, in projects, or in each for itself, and a role gives
  it only there;
* a site's own roles, which its configuration names, take the place of no built-in role, and give
  nothing that only the appliance's own processes may do.

The attack: a file of roles that somebody else can write. The files of the built-in roles lie in
`policies/` of the repository and are packaged with this folder. Called by the composition root; the
policy and the role service use the result.
"""

from __future__ import annotations

import importlib.resources
import os
import re
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from appliance.control.auth.scopes import EVERYWHERE, PLATFORM
from appliance.core.errors import FailedPrecondition
from appliance.core.names import is_id

_PERMISSION = re.compile(r"[a-z][A-Za-z]*\.[a-z][A-Za-z]*")
_SITE_MEMBERS = {"description": str, "scopes": list, "permissions": list}
_MEMBERS = _SITE_MEMBERS | {"assignable": bool}
_BUILT_IN = "policies/roles.yaml"
_SCOPES = frozenset({"platform", "everywhere", "project"})
_DECIDED = frozenset({"platform", "projects"})


@dataclass(frozen=True)
class Role:
    """A role.

    `assignable`: it may be bound to people and applications. `scopes`: where it can be bound, of
    `platform`, `everywhere` and `project`. `site`: it is the site's own.
    """

    id: str
    description: str
    assignable: bool
    scopes: frozenset[str]
    permissions: tuple[str, ...]
    site: bool = False

    def fits(self, domain: str) -> bool:
        """Whether it can be bound in a domain of the policy."""
        return {PLATFORM: "platform", EVERYWHERE: "everywhere"}.get(
            domain, "project"
        ) in self.scopes


@dataclass(frozen=True)
class Roles:
    """What `policies/` says.

    Attributes:
        roles: by id.
        permissions: in words.
        decided: where each permission is decided, of `platform` and `projects`.
        model_text: text of `model.conf`.
        set_aside: permissions that no built-in role holds.
    """

    roles: Mapping[str, Role]
    permissions: Mapping[str, str]
    decided: Mapping[str, frozenset[str]]
    model_text: str
    set_aside: frozenset[str] = frozenset()

    def is_decided(self, permission: str, domain: str) -> bool:
        """Whether a permission means something in a domain."""
        return ("platform" if domain == PLATFORM else "projects") in self.decided[permission]

    def given(self, role: str, domain: str) -> list[str]:
        """The permissions that a role gives in a domain."""
        return [
            permission
            for permission in self.roles[role].permissions
            if self.is_decided(permission, domain)
        ]

    @classmethod
    def load(cls, folder: Path | None = None) -> Roles:
        """Read and check the files of a folder; those that came with the product when None.

        Raises FailedPrecondition naming the file and what is wrong in it.
        """
        source: Traversable = folder or importlib.resources.files(__package__) / "policies"
        permissions = _built_in(source, "permissions.yaml")
        for name, words in permissions.items():
            if _PERMISSION.fullmatch(name) is None or not isinstance(words, str):
                raise _wrong("policies/permissions.yaml", f"{name!r} is not `nouns.verb: words`")
        roles = {
            name: _role(_BUILT_IN, _MEMBERS, name, value, permissions)
            for name, value in _built_in(source, "roles.yaml").items()
        }
        decided = _decided(_built_in(source, "nouns.yaml"), permissions)
        model_text = source.joinpath("model.conf").read_text()
        held = {permission for role in roles.values() for permission in role.permissions}
        read = cls(roles, permissions, decided, model_text, frozenset(permissions) - held)
        read._check_scopes(_BUILT_IN)
        return read

    def with_site(self, file: Path | None) -> Roles:
        """These, and a site's own roles from a file; the same when there is none.

        Raises FailedPrecondition naming the file and what is wrong in it, or who could write it.
        """
        if file is None:
            return self
        _check_writers(file)
        allowed = self.set_aside.union(
            *(role.permissions for role in self.roles.values() if role.assignable)
        )
        own = {
            name: replace(_role(file, _SITE_MEMBERS, name, value, allowed), site=True)
            for name, value in _read(file, file).items()
        }
        for name in own:
            if name in self.roles:
                raise _wrong(file, f"{name} is a built-in role: choose another name")
        both = replace(self, roles={**self.roles, **own})
        both._check_scopes(file)  # noqa: SLF001 - of this class
        return both

    def _check_scopes(self, file: object) -> None:
        """Refuse a role that gives nothing in one of its scopes, or something in none of them."""
        for role in self.roles.values():
            domains = [domain for domain in (PLATFORM, EVERYWHERE, "project") if role.fits(domain)]
            given = [set(self.given(role.id, domain)) for domain in domains]
            idle = set(role.permissions).difference(*given)
            if idle or not all(given):
                raise _wrong(file, f"{role.id} is bound where it gives nothing, or {sorted(idle)}")


class _Loader(yaml.SafeLoader):
    """Refuses the same key twice, which YAML would let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        # A key that is no word is refused below, by the base class.
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(keys) != len(set(keys)):
            raise yaml.constructor.ConstructorError(
                None, None, "the same key twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _built_in(source: Traversable, file: str) -> dict[str, Any]:
    return _read(source.joinpath(file), f"policies/{file}")


def _read(source: Traversable, file: object) -> dict[str, Any]:
    try:
        with source.open("rb") as stream:
            value = yaml.load(stream, _Loader)  # noqa: S506 - a SafeLoader
    except (OSError, yaml.YAMLError) as error:
        raise _wrong(file, str(error)) from error
    except RecursionError as error:
        raise _wrong(file, "it is nested too deep") from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _wrong(file, "it is not a mapping of names")
    return value


def _check_writers(file: Path) -> None:
    """Refuse a file that somebody else than root and this user could write."""
    try:
        found = os.lstat(file)
    except OSError as error:
        raise _wrong(file, f"it cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(found.st_mode):
        raise _wrong(file, "it is no regular file")
    if found.st_uid not in {0, os.geteuid()} or found.st_mode & 0o022:
        raise _wrong(
            file,
            "others could write it, and so give themselves rights: let root or the user of the "
            f"control plane own it, and `chmod 644 {file}`",
        )


def _role(
    file: object,
    members: Mapping[str, type],
    name: str,
    value: object,
    permissions: Collection[str],
) -> Role:
    """A checked role; for people and applications, unless it says otherwise."""
    if not is_id(name) or not isinstance(value, dict) or set(value) != set(members):
        raise _wrong(file, f"{name!r} needs exactly {', '.join(members)}")
    for member, kind in members.items():
        if not isinstance(value[member], kind):
            raise _wrong(file, f"{name}.{member} is not a {kind.__name__}")
    scopes = value["scopes"]
    if not scopes or not all(isinstance(each, str) and each in _SCOPES for each in scopes):
        raise _wrong(file, f"{name}.scopes are not some of {', '.join(sorted(_SCOPES))}")
    granted = value["permissions"]
    unknown = [item for item in granted if not isinstance(item, str) or item not in permissions]
    if unknown or len(granted) != len(set(granted)):
        raise _wrong(file, f"{name} has unknown or doubled permissions: {unknown}")
    return Role(
        name,
        value["description"],
        value.get("assignable", True),
        frozenset(scopes),
        tuple(granted),
    )


def _decided(nouns: Mapping[str, Any], permissions: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Where each permission is decided: its own line in the file, or that of its noun."""
    file = "policies/nouns.yaml"
    for name, where in nouns.items():
        known = name in permissions or any(p.startswith(f"{name}.") for p in permissions)
        if not known or not isinstance(where, list) or not where or not _DECIDED.issuperset(where):
            raise _wrong(file, f"{name!r} is no noun of a permission with [platform, projects]")
    decided = {}
    for permission in permissions:
        found = nouns.get(permission, nouns.get(permission.partition(".")[0]))
        if found is None:
            raise _wrong(file, f"it does not say where {permission} is decided")
        decided[permission] = frozenset(found)
    return decided


def _wrong(file: object, why: str) -> FailedPrecondition:
    return FailedPrecondition(f"{file} is refused: {why}", file=file)
