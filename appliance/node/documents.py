"""The orders documents that a leader or a worker gets, from what the control plane sent.

Pure: messages in, JSON values out; the values hold keys and are never logged. Called by the agent.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.core.addresses import host_port
from appliance.core.errors import InvalidInput, NotFound
from appliance.core.names import Name

_MIN_SECRET = 16
"""Characters; what is shorter is no key, and would be found in many texts."""


@dataclass(frozen=True)
class NodeEnvironment:
    """What the documents need to know of this node.

    The object store, its own address, the kind of its devices, and the file that says which
    certificates of gateways count.
    """

    objects: str
    address: str
    device_kind: str
    gateways: Path


@dataclass(frozen=True)
class ReplicaCredentials:
    """Of a replica: key, certificate and authority, PEM, and the cluster's id."""

    key_pem: bytes
    certificate_pem: str
    ca_pem: bytes
    cluster: str


def job(
    order: rpc.StartJob, keys: rpc.ReleaseKeysResponse, place: NodeEnvironment
) -> dict[str, Any]:
    """The orders of this node's part of a job. Raises InvalidInput when the job has no spec."""
    kind = order.job.WhichOneof("spec")
    if kind is None:
        raise InvalidInput("the job is of a kind that this node does not know: update its software")
    resume = None
    if keys.resume_step:
        resume = {
            "step": keys.resume_step,
            "digest": keys.resume_digest,
            "epoch": keys.resume_epoch,
        }
    return {
        "job": order.job.name,
        "uid": order.work.work,
        "epoch": order.work.epoch,
        "project": Name.parse(order.job.name, "job").project,
        "kind": kind,
        "spec": json_format.MessageToDict(getattr(order.job, kind)),
        "rank_base": order.rank_base,
        "world_size": order.world_size,
        "local_ranks": order.local_ranks,
        "node_rank": order.node_rank,
        "node_count": order.node_count,
        "node": _own_name(order),
        "devices": list(order.devices),
        "device_kind": place.device_kind,
        "rendezvous": "127.0.0.1:0" if order.node_count == 1 else order.rendezvous,
        "objects": place.objects,
        "inputs": {key.name: _artifact(key) for key in keys.inputs},
        # A control plane of 0.1.0 does not say the slot, which was the kind.
        "outputs": {key.slot or key.kind: _artifact(key) for key in keys.outputs},
        "resume": resume,
        "memory_limit": order.memory_bytes,
    }


def _own_name(order: rpc.StartJob) -> str:
    """The name of this node among several; a control plane of 0.1.0 does not say it."""
    names = list(order.job.nodes)
    several = order.node_count > 1 and len(names) == order.node_count
    return names[order.node_rank] if several else ""


def replica(
    order: rpc.StartReplica,
    keys: rpc.ReleaseKeysResponse,
    place: NodeEnvironment,
    credentials: ReplicaCredentials,
) -> dict[str, Any]:
    """The orders of a worker. Raises NotFound when no model came with the keys."""
    model = next((key for key in keys.inputs if key.kind == "model"), None)
    if model is None:
        raise NotFound("the control plane gave no model to serve; start the endpoint again")
    return {
        "work": order.work.work,
        "epoch": order.work.epoch,
        "endpoint": order.endpoint,
        "model": _artifact(model),
        "objects": place.objects,
        "devices": list(order.devices),
        "tensor_parallel": max(len(order.devices), 1),
        "max_sequence_length": order.max_sequence_length,
        # The order says it for each device, a worker is told it for all of them.
        "cache_bytes": order.cache_bytes * max(len(order.devices), 1),
        "listen": host_port(place.address, 0),
        "key_pem": credentials.key_pem.decode(),
        "cert_pem": credentials.certificate_pem,
        "ca_pem": credentials.ca_pem.decode(),
        "cluster_id": credentials.cluster,
        "gateways": str(place.gateways),
    }


def secrets(document: Mapping[str, Any]) -> list[str]:
    """The keys in an orders document, as a process that shows them might write them."""
    places = [document["model"]] if "model" in document else []
    for slot in ("inputs", "outputs"):
        places += document.get(slot, {}).values()
    found = [line for line in document.get("key_pem", "").splitlines() if "-----" not in line]
    for place in places:
        key = base64.b64decode(place["key"])
        shown = repr(key)[2:-1]
        # As base64, hexadecimal, Python's own form, and that inside a line of JSON.
        found += [place["key"], key.hex(), shown, json.dumps(shown)[1:-1]]
    return [each for each in found if len(each) >= _MIN_SECRET]


def _artifact(key: rpc.ArtifactKey) -> dict[str, Any]:
    return {
        "name": key.name,
        "kind": key.kind,
        "folder": key.folder,
        "object": key.object,
        "project": key.project,
        "key": base64.b64encode(key.key).decode(),
        "digest": key.manifest_digest,
    }
