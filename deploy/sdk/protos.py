"""The protos as the generator of the SDK needs them: messages, services, and their comments.

Called by `deploy.sdk.generate`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from importlib.resources import files
from pathlib import Path

from google.protobuf import descriptor_pb2 as pb
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]
_F = pb.FieldDescriptorProto


class Protos:
    """What the protos say: messages, services, and the comments beside them."""

    def __init__(self, protos: pb.FileDescriptorSet) -> None:
        self.files = {file.name: file for file in protos.file}
        self.messages: dict[str, tuple[str, pb.DescriptorProto]] = {}
        self.comments: dict[tuple[str, tuple[int, ...]], str] = {}
        self.paths: dict[str, tuple[int, ...]] = {}
        for file in protos.file:
            for number, message in enumerate(file.message_type):
                self._add(file, f".{file.package}", message, (4, number))
            for location in file.source_code_info.location:
                said = " ".join(location.leading_comments.split())
                self.comments[file.name, tuple(location.path)] = said

    def _add(
        self,
        file: pb.FileDescriptorProto,
        above: str,
        message: pb.DescriptorProto,
        path: tuple[int, ...],
    ) -> None:
        name = f"{above}.{message.name}"
        self.messages[name] = (file.name, message)
        self.paths[name] = path
        for number, inner in enumerate(message.nested_type):
            self._add(file, name, inner, (*path, 3, number))

    def services(
        self, wanted: Collection[str]
    ) -> Iterator[tuple[str, int, pb.ServiceDescriptorProto]]:
        """The services of these names, each with its file and its number there, by name."""
        found = [
            (file.name, number, service)
            for file in self.files.values()
            for number, service in enumerate(file.service)
            if service.name in wanted
        ]
        yield from sorted(found, key=lambda each: each[2].name)

    def said(self, message: str, number: int) -> str:
        """The comment of a field."""
        file, _ = self.messages[message]
        return self.comments.get((file, (*self.paths[message], 2, number)), "")

    def python(self, name: str) -> str:
        """How a message or an enum is written in Python."""
        owner = next(
            file
            for file in self.files.values()
            if name.startswith(f".{file.package}.") and _holds(file, name)
        )
        return f"{module_of(owner.name)}.{name.removeprefix(f'.{owner.package}.')}"

    def is_map(self, field: pb.FieldDescriptorProto) -> bool:
        """Whether a field is a map."""
        return (
            field.type == _F.TYPE_MESSAGE
            and field.type_name in self.messages
            and self.messages[field.type_name][1].options.map_entry
        )


def _holds(file: pb.FileDescriptorProto, name: str) -> bool:
    first = name.removeprefix(f".{file.package}.").partition(".")[0]
    names = {each.name for each in file.message_type} | {each.name for each in file.enum_type}
    return first in names


def module_of(file: str) -> str:
    """Name of the module that is generated from a file, without its package."""
    return file.rpartition("/")[2].removesuffix(".proto") + "_pb2"


def read() -> pb.FileDescriptorSet:
    """All protos, with their comments. Raises RuntimeError when the compiler refuses them."""
    protos = sorted(str(path) for path in (ROOT / "proto").rglob("*.proto"))
    includes = [f"-I{ROOT / 'proto'}", f"-I{files('grpc_tools') / '_proto'}"]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "all.binpb"
        done = protoc.main(
            ["protoc", *includes, "--include_source_info", f"--descriptor_set_out={out}", *protos]
        )
        if done != 0:
            raise RuntimeError("the protos cannot be read")
        return pb.FileDescriptorSet.FromString(out.read_bytes())
