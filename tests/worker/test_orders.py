from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest

from appliance.core.errors import InvalidInput
from appliance.crypto.store import Artifact
from appliance.worker import orders

KEY = bytes(range(32))


def document(**changes: Any) -> dict[str, Any]:
    model = {
        "kind": "model",
        "folder": "p/u",
        "object": "u",
        "project": "p",
        "key": base64.b64encode(KEY).decode(),
        "digest": "",
    } | changes.pop("model", {})
    return {
        "work": "w",
        "epoch": 3,
        "endpoint": "projects/p/endpoints/e",
        "model": model,
        "objects": "file:///objects",
        "devices": [0, 1],
        "tensor_parallel": 2,
        "max_sequence_length": 0,
        "cache_bytes": 1 << 20,
        "listen": "127.0.0.1:0",
        "key_pem": "PRIVATE",
        "cert_pem": "CERT",
        "ca_pem": "CA",
        "cluster_id": "c1",
        "gateways": "/state/gateways.json",
    } | changes


def parse(**changes: Any) -> orders.ReplicaOrders:
    return orders.parse(json.dumps(document(**changes)).encode())


def test_orders_are_read_whole() -> None:
    read, write = os.pipe()
    os.write(write, json.dumps(document()).encode())
    os.close(write)
    found = orders.parse(orders.read(read))
    assert found.model == Artifact("p/u", "u", "p", KEY)
    assert (found.devices, found.epoch, found.key_pem) == ((0, 1), 3, b"PRIVATE")


def test_a_member_that_is_new_is_ignored() -> None:
    assert parse(later="x").work == "w"


def test_secrets_are_not_shown() -> None:
    shown = repr(parse())
    assert "PRIVATE" not in shown
    assert repr(KEY) not in shown


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"epoch": "3"}, "epoch"),
        ({"epoch": True}, "epoch"),
        ({"devices": []}, "devices"),
        ({"devices": [0, -1]}, "devices"),
        ({"devices": [0, 1, 2]}, "devices"),
        ({"tensor_parallel": 0}, "tensor_parallel"),
        ({"cache_bytes": 0}, "cache_bytes"),
        ({"listen": ""}, "listen"),
        ({"model": {"key": "!!"}}, "model.key"),
        ({"model": {"key": base64.b64encode(b"short").decode()}}, "model.key"),
        ({"model": {"folder": "../other/u"}}, "model.folder"),
        ({"model": {"folder": "/etc"}}, "model.folder"),
        ({"model": {"kind": "dataset"}}, "model.kind"),
    ],
)
def test_a_wrong_member_is_named(changes: Any, path: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse(**changes)
    assert list(raised.value.fields) == [path]


def test_a_missing_member_is_named() -> None:
    value = document()
    del value["ca_pem"]
    with pytest.raises(InvalidInput) as raised:
        orders.parse(json.dumps(value).encode())
    assert raised.value.fields == {"ca_pem": "is missing"}


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"model": 1}'])
def test_what_is_no_document_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidInput):
        orders.parse(text)


def test_an_empty_pipe_is_refused() -> None:
    read, write = os.pipe()
    os.close(write)
    with pytest.raises(InvalidInput):
        orders.read(read)
