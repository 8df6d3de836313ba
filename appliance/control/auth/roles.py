"""The built-in roles, every permission in words, and the text of the policy model.

Rules kept here: the files are checked when they are read, so a typing error in one stops the start
instead of changing who may do what; each role lists its permissions one by one, without wildcards.

The files lie in `policies/` of the repository and are packaged with this folder. Called by the
composition root; the policy and the role service use the result.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from appliance.core.errors import FailedPrecondition
from appliance.core.names import is_id

_PERMISSION = re.compile(r"[a-z][A-Za-z]*\.[a-z][A-Za-z]*")
_MEMBERS = {"description": str, "assignable": bool, "scope": str, "permissions": list}
_SCOPES = frozenset({"platform", "any"})


@dataclass(frozen=True)
class Role:
    """A built-in role.

    `assignable`: it may be bound to people and applications. `platform_only`: it holds on the
    whole appliance and never in one project.
    """

    id: str
    description: str
    assignable: bool
    platform_only: bool
    permissions: tuple[str, ...]


@dataclass(frozen=True)
class Roles:
    """What `policies/` says: roles by id, words by permission, and the text of `model.conf`."""

    roles: Mapping[str, Role]
    permissions: Mapping[str, str]
    model_text: str

    @classmethod
    def load(cls, folder: Path | None = None) -> Roles:
        """Read and check the files of a folder; those that came with the product when None.

        Raises FailedPrecondition naming the file and what is wrong in it.
        """
        source: Traversable = folder or importlib.resources.files(__package__) / "policies"
        permissions = _read(source, "permissions.yaml")
        for name, words in permissions.items():
            if _PERMISSION.fullmatch(name) is None or not isinstance(words, str):
                raise _wrong("permissions.yaml", f"{name!r} is not `nouns.verb: words`")
        roles = {
            name: _role(name, value, permissions)
            for name, value in _read(source, "roles.yaml").items()
        }
        return cls(roles, permissions, source.joinpath("model.conf").read_text())


class _Loader(yaml.SafeLoader):
    """Refuses the same key twice, which YAML would let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        keys = [key.value for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise yaml.constructor.ConstructorError(
                None, None, "the same key twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _read(source: Traversable, file: str) -> dict[str, Any]:
    try:
        with source.joinpath(file).open("rb") as stream:
            value = yaml.load(stream, _Loader)  # noqa: S506 - a SafeLoader
    except (OSError, yaml.YAMLError) as error:
        raise _wrong(file, str(error)) from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _wrong(file, "it is not a mapping of names")
    return value


def _role(name: str, value: object, permissions: Mapping[str, str]) -> Role:
    if not is_id(name) or not isinstance(value, dict) or set(value) != set(_MEMBERS):
        raise _wrong("roles.yaml", f"{name!r} needs exactly {', '.join(_MEMBERS)}")
    for member, kind in _MEMBERS.items():
        if not isinstance(value[member], kind):
            raise _wrong("roles.yaml", f"{name}.{member} is not a {kind.__name__}")
    if value["scope"] not in _SCOPES:
        raise _wrong("roles.yaml", f"{name}.scope is neither platform nor any")
    granted = value["permissions"]
    unknown = [item for item in granted if item not in permissions]
    if unknown or len(granted) != len(set(granted)):
        raise _wrong("roles.yaml", f"{name} has unknown or doubled permissions: {unknown}")
    return Role(
        name,
        value["description"],
        value["assignable"],
        value["scope"] == "platform",
        tuple(granted),
    )


def _wrong(file: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(f"policies/{file} is refused: {why}", file=file)
