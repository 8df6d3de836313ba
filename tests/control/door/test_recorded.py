"""What the audit log says after people have changed things: who, what, which, and no secret."""

from __future__ import annotations

import json
import uuid
from typing import Any

import grpc.aio
import pytest
from google.protobuf.message_factory import GetMessageClass

from appliance.api.access.v1 import service_account_service_pb2 as account_rpc
from appliance.api.access.v1 import user_service_pb2 as user_rpc
from appliance.api.audit.v1 import audit_service_pb2 as audit_rpc
from appliance.api.audit.v1 import audit_service_pb2_grpc
from appliance.api.data.v1 import dataset_service_pb2 as dataset_rpc
from appliance.api.data.v1 import dataset_service_pb2_grpc
from appliance.api.nodes.v1 import node_service_pb2 as node_rpc
from appliance.api.nodes.v1 import node_service_pb2_grpc
from appliance.cli.audit import details_of
from appliance.control.bootstrap import parts
from appliance.control.rpc.servicer import descriptor_of
from appliance.core.data_directory import DataDirectory
from tests.control.services.access.test_people import STRONG, Client
from tests.control.test_access_matrix import call
from tests.fakes.appliance import ADMINISTRATOR, Appliance, bearer
from tests.wire.test_recorded import PLANTED, SENTENCE, TOKEN_SECRET, fill


def said(appliance: Appliance, method: str) -> list[dict[str, Any]]:
    """Details of every result of a method."""
    return [
        record["details"]
        for record in appliance.records()
        if record["kind"] == "result" and record["method"].endswith(f"/{method}")
    ]


async def test_who_got_which_role_where_and_who_lost_it(appliance: Appliance) -> None:
    client = Client(appliance, appliance.session(ADMINISTRATOR))
    appliance.user("bob")
    appliance.project("mine")
    made = await client.bind("users/bob", "roles/viewer", "projects/mine")
    (details,) = said(appliance, "CreateBinding")
    given = {
        "binding.principal": "users/bob",
        "binding.role": "roles/viewer",
        "binding.scope": "projects/mine",
    }
    assert details["asked"] == given
    assert details["made"] == {"name": made.name}
    await client.unbind(made.name)
    (details,) = said(appliance, "DeleteBinding")
    assert (details["asked"], details["made"]) == ({"name": made.name}, given)
    intents = [each for each in appliance.records() if each["kind"] == "intent"]
    assert intents[1]["details"]["asked"] == given


async def test_what_was_refused_says_what_was_asked_for(appliance: Appliance) -> None:
    appliance.project("mine")
    appliance.user("vera", ("viewer", "mine"))
    client = Client(appliance, appliance.session("vera"))
    with pytest.raises(grpc.aio.AioRpcError):
        await client.bind("users/vera", "roles/owner", "projects/mine")
    record = appliance.records()[-1]
    assert (record["kind"], record["principal"]) == ("denied", "users/vera")
    assert record["details"]["asked"]["binding.role"] == "roles/owner"


async def test_people_projects_accounts_and_tokens(appliance: Appliance) -> None:
    token = appliance.session(ADMINISTRATOR)
    client = Client(appliance, token)
    await client.create_user("bob")
    await client.users.LockUser(
        user_rpc.LockUserRequest(name="users/bob"), metadata=client.metadata
    )
    await client.create_project("mine")
    account = await client.accounts.CreateServiceAccount(
        account_rpc.CreateServiceAccountRequest(parent="projects/mine", service_account_id="app"),
        metadata=client.metadata,
    )
    made = await client.accounts.CreateToken(
        account_rpc.CreateTokenRequest(name=account.name, lifetime_days=2),
        metadata=client.metadata,
    )
    await client.accounts.RevokeToken(
        account_rpc.RevokeTokenRequest(name=account.name, token_id=made.metadata.id),
        metadata=client.metadata,
    )
    assert [each["made"] for each in said(appliance, "CreateUser")] == [{"name": "users/bob"}]
    assert [each["made"] for each in said(appliance, "LockUser")] == [{"locked": True}]
    (details,) = said(appliance, "CreateProject")
    assert details["made"] == {"name": "projects/mine"}
    (details,) = said(appliance, "CreateToken")
    assert details["asked"] == {"lifetime_days": 2}
    assert details["made"]["metadata.id"] == made.metadata.id
    (details,) = said(appliance, "RevokeToken")
    assert details["asked"] == {"token_id": made.metadata.id}
    log = b"".join(path.read_bytes() for path in DataDirectory(appliance.folder).audit.iterdir())
    for secret in (STRONG, token.rpartition("_")[2], made.token.rpartition("_")[2]):
        assert secret.encode() not in log


async def test_join_tokens_and_versions(appliance: Appliance) -> None:
    metadata = bearer(appliance.session(ADMINISTRATOR))
    appliance.project("mine")
    nodes = appliance.api(node_service_pb2_grpc.NodeServiceStub)
    await nodes.CreateJoinToken(node_rpc.CreateJoinTokenRequest(node_id="gpu-1"), metadata=metadata)
    (details,) = said(appliance, "CreateJoinToken")
    assert details["asked"] == {"node_id": "gpu-1"}
    datasets = appliance.api(dataset_service_pb2_grpc.DatasetServiceStub)
    await datasets.CreateDataset(
        dataset_rpc.CreateDatasetRequest(parent="projects/mine", dataset_id="docs"),
        metadata=metadata,
    )
    parent = "projects/mine/datasets/docs"
    version = await datasets.UploadDatasetVersion(
        iter(
            [
                dataset_rpc.UploadDatasetVersionRequest(
                    parent=parent, request_id=str(uuid.uuid4())
                ),
                dataset_rpc.UploadDatasetVersionRequest(
                    documents=[dataset_rpc.Document(id="one", text=SENTENCE)]
                ),
            ]
        ),
        metadata=metadata,
    )
    (details,) = said(appliance, "UploadDatasetVersion")
    assert details["made"] == {
        "name": version.name,
        "uid": version.uid,
        "kind": "KIND_TEXT",
        "documents": 1,
        "size_bytes": version.size_bytes,
        "manifest_digest": version.manifest_digest,
    }


async def test_a_record_is_found_by_what_was_made(appliance: Appliance) -> None:
    client = Client(appliance, appliance.session(ADMINISTRATOR))
    await client.create_user("bob")
    appliance.project("mine")
    await client.bind("users/bob", "roles/viewer", "projects/mine")
    audit = appliance.api(audit_service_pb2_grpc.AuditServiceStub)
    found = await audit.ListRecords(
        audit_rpc.ListRecordsRequest(resource="users/bob"), metadata=client.metadata
    )
    methods = {record.method.rpartition("/")[2] for record in found.records}
    assert {"CreateUser", "CreateBinding"} <= methods
    result = next(r for r in found.records if r.method.endswith("/CreateBinding"))
    assert details_of(result.details).startswith(
        "principal=users/bob role=roles/viewer scope=projects/mine name=bindings/"
    )


@pytest.mark.attack
@pytest.mark.parametrize("secret", PLANTED)
async def test_no_call_leaves_a_secret_in_the_log(appliance: Appliance, secret: str) -> None:
    """Every RPC of both listeners, with the secret in each field, by who may call it or not."""
    metadata = bearer(appliance.session(ADMINISTRATOR))
    served = [(appliance.control.api_port, None, parts.API)]
    served += [(appliance.control.machines_port, appliance.node("gpu-1"), parts.MACHINES)]
    called = 0
    for port, machine, kinds in served:
        for method in [each for kind in kinds for each in descriptor_of(kind).methods]:
            request = GetMessageClass(method.input_type)()
            fill(request, secret)
            rule = parts.rules()[f"/{method.containing_service.full_name}/{method.name}"]
            await call(appliance.channel(port, machine), rule, request, metadata)
            called += 1
    assert called > 50
    log = b"".join(path.read_bytes() for path in DataDirectory(appliance.folder).audit.iterdir())
    assert len(appliance.records()) > 20
    for planted in (SENTENCE, TOKEN_SECRET, "naïve", "a\\nforged"):
        assert planted.encode() not in log
        assert json.dumps(planted)[1:-1].encode() not in log
