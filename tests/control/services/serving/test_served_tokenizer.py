"""A tokenizer of 60 MiB from the object store to a gateway, over the wire between them."""

from __future__ import annotations

import json

import pytest

from appliance.api.serving.v1 import routing_service_pb2
from appliance.api.serving.v1.routing_service_pb2_grpc import RoutingServiceStub
from appliance.control.services.data.artifacts import Provenance
from appliance.control.services.serving.served_tokenizers import ONE_MESSAGE_BYTES, PIECE_BYTES
from appliance.control.store import tables
from appliance.core.errors import FailedPrecondition, NotFound
from appliance.gateway.models import ServedModels
from appliance.gateway.snapshot import Pool, ServedVersion
from appliance.gateway.tokenize import Desk
from appliance.gateway.view import ControlClient, View
from tests.fakes import tiny_model
from tests.fakes.appliance import Appliance, error_of
from tests.fakes.lab import write
from tests.fakes.worker import tokenizer

LARGE = 60 << 20
NAME = "projects/demo/endpoints/chat"
POOL = Pool(NAME, ServedVersion("projects/demo/models/base/versions/1", "", 512))


def serve(appliance: Appliance, size: int) -> bytes:
    """An endpoint whose model has a tokenizer of some size, which it returns."""
    appliance.project("demo")
    text = tokenizer().to_str().encode()
    # Spaces mean nothing in JSON and take no time to read.
    text = text[:-1] + b" " * (size - len(text)) + text[-1:]
    base, artifacts = appliance.control.base, appliance.control.work.artifacts
    with base.database.write() as transaction:
        version = artifacts.allocate(
            transaction, "demo", "model", "base", Provenance("users/alice")
        )
    settings = json.dumps({"chat_template": tiny_model.TEMPLATE, "eos_token": "</s>"}).encode()
    files = {"tokenizer.json": text, "tokenizer_config.json": settings, "config.json": b"{}"}
    digest = write(artifacts.writer(version), files)
    reader = artifacts.verify(version, digest)
    artifacts.sign(version, digest)
    with base.database.write() as transaction:
        artifacts.register(transaction, version, reader, {}, {"kind": "upload", "inputs": []})
        transaction.run(
            tables.endpoint.insert().values(
                uid="e" * 16,
                project="demo",
                id="chat",
                model_version=version.uid,
                replicas=1,
                tensor_parallel=1,
                max_sequence_length=512,
                cache_bytes=1 << 26,
                state="READY",
                creator="users/alice",
                create_time=appliance.clock(),
            )
        )
    return text


def control_of(appliance: Appliance) -> ControlClient:
    port, machine = appliance.control.machines_port, appliance.gateway()
    return ControlClient(lambda: appliance.channel(port, machine), View(10.0))


async def test_a_tokenizer_of_60_mib_is_served(appliance: Appliance) -> None:
    text = serve(appliance, LARGE)
    control, desk = control_of(appliance), Desk.new()
    try:
        content, served = await control.tokenizer(NAME)
        assert served is not None
        assert served.tokenizer_json == text
        assert (served.chat_template, served.eos_token) == (tiny_model.TEMPLATE, "</s>")
        # Who has it already is told so, and gets nothing more.
        assert await control.tokenizer(NAME, "", ["other", content]) == (content, None)
        model = await ServedModels(control.tokenizer, desk, 60.0).get(POOL)
        assert await model.prompt("Grüße", 512) == tokenizer().encode("Grüße").ids
        assert await model.chat([{"role": "user", "content": "ab"}], 512)
    finally:
        desk.close()


async def test_every_part_is_small(appliance: Appliance) -> None:
    serve(appliance, 3 << 20)
    stub = appliance.machines(RoutingServiceStub, appliance.gateway())
    request = routing_service_pb2.ReadServedTokenizerRequest(endpoint=NAME)
    parts = [part async for part in stub.ReadServedTokenizer(request)]
    assert max(part.ByteSize() for part in parts) <= PIECE_BYTES + 100
    assert sum(len(part.data) for part in parts) == parts[0].tokenizer_json_size + len(
        tiny_model.TEMPLATE
    )
    assert [bool(part.digest) for part in parts] == [False] * (len(parts) - 1) + [True]


@pytest.mark.parametrize("size", [ONE_MESSAGE_BYTES + 1, LARGE])
async def test_a_gateway_that_reads_no_parts_is_told_why(appliance: Appliance, size: int) -> None:
    serve(appliance, size)
    stub = appliance.machines(RoutingServiceStub, appliance.gateway())
    request = routing_service_pb2.GetServedTokenizerRequest(endpoint=NAME)
    error = await error_of(stub.GetServedTokenizer(request))
    assert isinstance(error, FailedPrecondition)
    assert "a gateway of this version reads it in pieces" in str(error)


async def test_an_endpoint_that_is_not_served_has_none(appliance: Appliance) -> None:
    with pytest.raises(NotFound):
        await control_of(appliance).tokenizer("projects/demo/endpoints/none")
