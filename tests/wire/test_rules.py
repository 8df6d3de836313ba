"""Access rules: every RPC of the product has one, and what is unclear stops the server."""

import importlib
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor

from appliance.api.access.v1 import binding_pb2, binding_service_pb2
from appliance.api.common.v1 import access_pb2
from appliance.api.data.v1 import dataset_service_pb2
from appliance.api.jobs.v1 import job_service_pb2
from appliance.api.serving.v1 import routing_service_pb2
from appliance.wire.recorded import Recorded
from appliance.wire.rules import AccessRule, RuleMissing, resource_of, rules_of

API = Path(__file__).parents[2] / "appliance" / "api"
BINDINGS = "/appliance.api.access.v1.BindingService/"
STRING = descriptor_pb2.FieldDescriptorProto.TYPE_STRING


def all_services() -> list[ServiceDescriptor]:
    services: list[ServiceDescriptor] = []
    for file in sorted(API.glob("*/v1/*_service_pb2.py")):
        module = importlib.import_module(f"appliance.api.{file.parts[-3]}.v1.{file.stem}")
        services += module.DESCRIPTOR.services_by_name.values()
    return services


def service_with(access: access_pb2.Access | None) -> ServiceDescriptor:
    """A service with the method `Get`; its request has texts, a number and a message."""
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    request = file.message_type.add(name="Request")
    request.field.add(name="name", number=1, type=STRING, label=1)
    request.field.add(name="many", number=2, type=STRING, label=3)
    request.field.add(name="size", number=3, type=5, label=1)
    request.field.add(name="thing", number=4, type=11, label=1, type_name=".t.Request")
    request.field.add(name="password", number=5, type=STRING, label=1)
    request.field.add(name="blob", number=6, type=12, label=1)
    method = file.service.add(name="S").method.add(
        name="Get", input_type=".t.Request", output_type=".t.Request"
    )
    if access is not None:
        method.options.Extensions[access_pb2.access].CopyFrom(access)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName("t.S")


def test_every_rpc_of_the_product_has_a_rule_and_a_comment() -> None:
    services = all_services()
    rules = rules_of(services)
    methods = {f"/{s.full_name}/{m.name}" for s in services for m in s.methods}
    assert set(rules) == methods
    assert len(methods) > 50
    assert [rule.method for rule in rules.values() if not rule.summary] == []


def test_known_answers() -> None:
    rules = rules_of(
        [
            binding_service_pb2.DESCRIPTOR.services_by_name["BindingService"],
            dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"],
            job_service_pb2.DESCRIPTOR.services_by_name["JobService"],
            routing_service_pb2.DESCRIPTOR.services_by_name["RoutingService"],
        ]
    )
    assert rules[BINDINGS + "CreateBinding"] == AccessRule(
        BINDINGS + "CreateBinding",
        "bindings.create",
        fresh_mfa=True,
        resource="binding.scope",
        recorded=Recorded(("binding.principal", "binding.role", "binding.scope"), ("name",)),
        summary="Gives a role, which the caller must hold there with each of its permissions.",
    )
    upload = rules["/appliance.api.data.v1.DatasetService/UploadDatasetVersion"]
    assert (upload.resource, upload.request_streaming, upload.response_streaming) == (
        "parent",
        True,
        False,
    )
    watch = rules["/appliance.api.jobs.v1.JobService/WatchJob"]
    assert (watch.resource, watch.streaming, watch.request_streaming) == ("name", True, False)
    assert rules["/appliance.api.serving.v1.RoutingService/GetServedTokenizer"].resource == ""


@pytest.mark.attack
@pytest.mark.parametrize(
    ("access", "why"),
    [
        (None, "no rule"),
        (access_pb2.Access(), "exactly one of"),
        (access_pb2.Access(fresh_mfa=True), "exactly one of"),
        (access_pb2.Access(permission="a.b", anonymous=True), "exactly one of"),
        (access_pb2.Access(anonymous=True, self=True), "exactly one of"),
        (access_pb2.Access(anonymous=True, fresh_mfa=True), "no second factor"),
        (access_pb2.Access(anonymous=True, unfinished=True), "open to an unfinished session"),
        (access_pb2.Access(permission="a.b", unfinished=True), "open to an unfinished session"),
        (access_pb2.Access(permission="a.b", resource="nmae"), "has no field nmae"),
        (access_pb2.Access(permission="a.b", resource="thing.nmae"), "has no field thing.nmae"),
        (access_pb2.Access(permission="a.b", resource="name.name"), "has no field name.name"),
        (access_pb2.Access(permission="a.b", resource="thing"), "is not one text"),
        (access_pb2.Access(permission="a.b", resource="many"), "is not one text"),
        (access_pb2.Access(permission="a.b", resource="size"), "is not one text"),
        (access_pb2.Access(permission="a.b"), "does not say which fields its records carry"),
        (access_pb2.Access(permission="a.b", asked=["nmae"]), "no field nmae to record"),
        (access_pb2.Access(permission="a.b", made=["thing.nmae"]), "no field thing.nmae"),
        (access_pb2.Access(permission="a.b", made=["name.name"]), "no field name.name"),
        (access_pb2.Access(permission="a.b", made=["thing"]), "must not be recorded"),
        (access_pb2.Access(permission="a.b", asked=["password"]), "must not be recorded"),
        (access_pb2.Access(permission="a.b", made=["thing.password"]), "must not be recorded"),
        (access_pb2.Access(permission="a.b", made=["blob"]), "must not be recorded"),
    ],
)
def test_no_server_starts_with(access: access_pb2.Access | None, why: str) -> None:
    with pytest.raises(RuleMissing, match=f"/t.S/Get: .*{why}"):
        rules_of([service_with(access)])


def test_the_resource_of_a_request() -> None:
    request = binding_service_pb2.CreateBindingRequest(
        binding=binding_pb2.Binding(scope="projects/p")
    )
    assert resource_of(AccessRule("/m", "p", resource="binding.scope"), request) == "projects/p"
    empty = binding_service_pb2.CreateBindingRequest()
    assert resource_of(AccessRule("/m", "p", resource="binding.scope"), empty) == ""
    assert resource_of(AccessRule("/m", "p"), request) == ""
    assert resource_of(AccessRule("/m", "p", resource="name"), None) == ""
