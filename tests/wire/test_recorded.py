"""What the audit records of a call carry: enough to know what happened, and nothing secret."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from appliance.api.access.v1 import binding_pb2, binding_service_pb2, service_account_service_pb2
from appliance.api.agent.v1 import agent_service_pb2
from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.kinds import kind_of
from appliance.wire.recorded import UNSHAPED, facts
from appliance.wire.rules import AccessRule, rules_of
from tests.wire.test_rules import all_services

SENTENCE = "correct horse battery staple"
TOKEN_SECRET = "c2VjcmV0LW9mLWEtdG9rZW4"
PLANTED = (SENTENCE, f"sla_ses_abcdef_{TOKEN_SECRET}", "naïve\u202ereversed", "a\nforged line")
RULES = rules_of(all_services())
METHODS = {f"/{s.full_name}/{m.name}": m for s in all_services() for m in s.methods}


def fill(message: Message, secret: str, depth: int = 4) -> None:
    """Plant a text in every field of a message that takes one, of every oneof the last."""
    for field in message.DESCRIPTOR.fields:
        if field.type == field.TYPE_STRING:
            _put(message, field, secret)
        elif field.type == field.TYPE_BYTES:
            _put(message, field, secret.encode())
        elif field.message_type is not None and depth and not _is_map(field):
            each = getattr(message, field.name)
            fill(each.add() if field.is_repeated else each, secret, depth - 1)


def _put(message: Message, field: Any, value: str | bytes) -> None:
    if field.is_repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)


def _is_map(field: Any) -> bool:
    return bool(field.message_type.GetOptions().map_entry)


@pytest.mark.attack
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("secret", PLANTED)
def test_nothing_that_is_planted_in_any_field_is_recorded(method: str, secret: str) -> None:
    recorded, about = RULES[method].recorded, METHODS[method]
    for kind, paths in ((about.input_type, recorded.asked), (about.output_type, recorded.made)):
        message = GetMessageClass(kind)()
        fill(message, secret)
        said = json.dumps(facts(message, paths), ensure_ascii=False)
        assert SENTENCE not in said
        assert TOKEN_SECRET not in said
        assert "reversed" not in said
        assert "forged" not in said


def test_the_test_above_plants_where_it_matters() -> None:
    request = job_service_pb2.CreateJobRequest()
    fill(request, SENTENCE)
    spec = request.job.WhichOneof("spec")
    kind = kind_of(spec)
    named = {each.field for each in (*kind.reads, *kind.makes)}
    asked = facts(request, RULES["/appliance.api.jobs.v1.JobService/CreateJob"].recorded.asked)
    assert named
    assert asked == {"job.spec": spec} | {kind.path(field): UNSHAPED for field in named}


def changes(method: MethodDescriptor) -> bool:
    options = method.GetOptions()
    return bool(options.idempotency_level != options.NO_SIDE_EFFECTS)


def test_no_rpc_that_changes_something_calls_itself_a_read() -> None:
    verbs = ("Get", "List", "Watch", "Read", "Export", "Download", "Plan", "WhoAmI")
    reads = {method.name for method in METHODS.values() if not changes(method)}
    assert {name for name in reads if not name.startswith(verbs)} == set()


def test_what_a_job_is_asked_for() -> None:
    rule = RULES["/appliance.api.jobs.v1.JobService/CreateJob"]
    spec = job_pb2.TrainSpec(
        dataset="projects/p/datasets/d/versions/1", output_model="projects/p/models/m"
    )
    request = job_service_pb2.CreateJobRequest(job=job_pb2.Job(train=spec))
    assert facts(request, rule.recorded.asked) == {
        "job.spec": "train",
        "job.train.dataset": "projects/p/datasets/d/versions/1",
        "job.train.output_model": "projects/p/models/m",
    }
    answer = job_pb2.Job(name="projects/p/jobs/j", uid="u1", train=spec)
    assert facts(answer, rule.recorded.made) == {"name": "projects/p/jobs/j", "uid": "u1"}


def test_what_was_only_checked_is_said_to_be() -> None:
    rule = RULES["/appliance.api.access.v1.BindingService/CreateBinding"]
    binding = binding_pb2.Binding(principal="users/u", role="roles/viewer", scope="projects/p")
    request = binding_service_pb2.CreateBindingRequest(binding=binding, validate_only=True)
    assert facts(request, rule.recorded.asked) == {
        "binding.principal": "users/u",
        "binding.role": "roles/viewer",
        "binding.scope": "projects/p",
        "validate_only": True,
    }


def test_numbers_lists_and_times() -> None:
    account = service_account_service_pb2.CreateTokenResponse(token="sla_svc_a_b")
    account.metadata.id = "t1"
    account.metadata.expire_time.FromJsonString("2026-11-26T02:00:00Z")
    assert facts(account, ("metadata.id", "metadata.expire_time")) == {
        "metadata.id": "t1",
        "metadata.expire_time": "2026-11-26T02:00:00Z",
    }
    keys = agent_service_pb2.ReleaseKeysResponse(
        inputs=[
            agent_service_pb2.ArtifactKey(name=f"projects/p/models/m/versions/{i}", key=b"k" * 32)
            for i in (1, 2)
        ]
    )
    rule: AccessRule = RULES["/appliance.api.agent.v1.AgentService/ReleaseKeys"]
    assert facts(keys, rule.recorded.made)["inputs.name"] == [
        "projects/p/models/m/versions/1",
        "projects/p/models/m/versions/2",
    ]
    assert "key" not in json.dumps(facts(keys, rule.recorded.made))


def test_an_unknown_number_of_an_enum_and_a_missing_message() -> None:
    job = job_pb2.Job(state=99)  # type: ignore[arg-type]  # as a newer server would send it
    assert facts(job, ("state",)) == {"state": 99}
    assert facts(None, ("name",)) == {}
