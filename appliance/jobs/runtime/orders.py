"""The orders of one job on one node: one JSON document, sent through an inherited pipe.

Rules kept here:
* keys exist in this document and in memory alone: never in arguments, environment, files, or a
  `repr`;
* a document with a member missing or of the wrong kind is refused whole, before any process starts.

Pure: takes bytes, returns values. Called by the leader (`appliance.jobs.runtime.leader`) and by
tests.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from appliance.api.jobs.v1 import job_pb2
from appliance.core.errors import InvalidInput
from appliance.crypto.store import Artifact

MAX_BYTES = 4 << 20
"""Bytes of a document at most."""

CPU = "cpu"
CUDA = "cuda"


@dataclass(frozen=True)
class Resume:
    """The checkpoint that this epoch goes on from: its step, its digest, and who saved it.

    Epoch 0 is that of checkpoints of 0.1.0, which lie directly in the folder of their series.
    """

    step: int
    digest: str
    epoch: int = 0


@dataclass(frozen=True)
class JobOrders:
    """What this node has to do for a job under one lease.

    Sizes in bytes; `rendezvous` is `host:port`; `node` is the name of the node, empty when it is
    the only one.
    """

    job: str
    uid: str
    epoch: int
    project: str
    kind: str
    spec: Message
    rank_base: int
    world_size: int
    local_ranks: int
    node_rank: int
    node_count: int
    node: str
    devices: tuple[int, ...]
    device_kind: str
    rendezvous: str
    objects: str
    inputs: Mapping[str, Artifact]
    outputs: Mapping[str, Artifact]
    resume: Resume | None
    memory_limit: int

    @classmethod
    def parse(cls, document: bytes) -> JobOrders:
        """Read what the agent sent; `InvalidInput` names what is wrong with it."""
        if len(document) > MAX_BYTES:
            raise InvalidInput("the orders of the job are too long")
        try:
            values = json.loads(document)
            return cls(**_fields(values))
        except KeyError as error:
            raise InvalidInput(f"the orders of the job lack {error.args[0]}") from error
        except (TypeError, ValueError, AttributeError, json_format.ParseError) as error:
            # The text of the error could quote the document, which holds keys.
            kind = type(error).__name__
            raise InvalidInput(f"the orders of the job cannot be read ({kind})") from None

    def __post_init__(self) -> None:
        """Refuse numbers that contradict each other."""
        fits = (
            self.local_ranks >= 1
            and 0 <= self.rank_base <= self.world_size - self.local_ranks
            and len(self.devices) == self.local_ranks
            and 0 <= self.node_rank < self.node_count
            and self.device_kind in (CPU, CUDA)
        )
        if not fits:
            raise InvalidInput("the ranks, nodes and devices of the orders do not fit each other")


def _fields(values: dict[str, Any]) -> dict[str, Any]:
    resume = values["resume"]
    node_count = int(values["node_count"])
    return {
        **{name: str(values[name]) for name in ("job", "uid", "project", "kind", "rendezvous")},
        **{name: int(values[name]) for name in ("epoch", "rank_base", "world_size", "local_ranks")},
        "objects": str(values["objects"]),
        "spec": parse_spec(values["kind"], values["spec"]),
        "node_count": node_count,
        "node_rank": int(values.get("node_rank", 0)),
        "node": str(values.get("node", "")),
        "devices": tuple(int(device) for device in values["devices"]),
        "device_kind": str(values.get("device_kind", CPU)),
        "inputs": {name: _artifact(name, value) for name, value in values["inputs"].items()},
        "outputs": {
            slot: _artifact(value["name"], value) for slot, value in values["outputs"].items()
        },
        "resume": _resume(resume) if resume else None,
        "memory_limit": int(values["memory_limit"]),
    }


def _resume(value: Mapping[str, Any]) -> Resume:
    return Resume(int(value["step"]), str(value["digest"]), int(value.get("epoch", 0)))


def parse_spec(kind: str, value: Mapping[str, Any]) -> Message:
    """The message of a job's spec from its proto JSON; `kind` is the name of the oneof member."""
    member = job_pb2.Job.DESCRIPTOR.oneofs_by_name["spec"].fields
    if kind not in {field.name for field in member}:
        raise InvalidInput(f"there is no kind of job called {kind[:40]!r}")
    job = job_pb2.Job()
    json_format.ParseDict({kind: dict(value)}, job)
    spec: Message = getattr(job, kind)
    return spec


def _artifact(name: str, value: Mapping[str, Any]) -> Artifact:
    try:
        key = base64.b64decode(value["key"], validate=True)
    except binascii.Error:
        raise InvalidInput(f"the key of {name} cannot be read") from None
    return Artifact(
        folder=str(value["folder"]),
        object=str(value["object"]),
        project=str(value["project"]),
        key=key,
        digest=str(value.get("digest", "")),
    )
