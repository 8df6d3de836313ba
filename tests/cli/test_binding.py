"""Where a role is given is said, or is the chosen project; never silently everywhere."""

import dataclasses

import pytest

from appliance.api.access.v1 import binding_pb2, binding_service_pb2, service_account_pb2
from appliance.client.profiles import Profiles
from appliance.core.errors import InvalidInput
from tests.fakes.command_line import Run
from tests.fakes.control_api import FakeApi

NOBODY = InvalidInput("there is none", fields={"binding.principal": "there is none"})
GIVE = ("binding", "create", "--principal", "users/dora", "--role", "owner")


@pytest.mark.parametrize(
    ("typed", "scope"),
    [
        ((), "projects/demo"),
        (("--project", "other"), "projects/other"),
        (("--everywhere",), "projects/-"),
        (("--platform",), "platform"),
    ],
)
def test_a_role_is_given_where_it_is_said(
    command: Run, logged_in: FakeApi, typed: tuple[str, ...], scope: str
) -> None:
    made = binding_pb2.Binding(name="bindings/b", scope=scope)
    logged_in.answers["BindingService.CreateBinding"] = made
    answer = binding_service_pb2.ListBindingsResponse(bindings=[made])
    logged_in.answers["BindingService.ListBindings"] = answer
    assert command(*GIVE, *typed).code == 0
    listed = command("binding", "list", *typed)
    assert listed.code == 0
    create, list_ = logged_in.calls
    assert (create.request.binding.scope, list_.request.scope) == (scope, scope)
    words = {"projects/-": "all projects", "platform": "the platform"}
    assert words.get(scope, scope) in listed.out


@pytest.mark.attack
def test_without_a_project_nothing_is_given(command: Run, logged_in: FakeApi) -> None:
    profiles = Profiles()
    profiles.put(dataclasses.replace(profiles.get(), project=""))
    result = command(*GIVE)
    assert result.code == 2
    assert "where does it hold? Give --project P, --everywhere for all projects" in result.err
    assert logged_in.calls == []


@pytest.mark.parametrize(
    "typed", [("--everywhere", "--platform"), ("--project", "demo", "--everywhere")]
)
def test_one_scope_at_a_time(command: Run, logged_in: FakeApi, typed: tuple[str, ...]) -> None:
    result = command(*GIVE, *typed)
    assert result.code == 2
    assert "give one of --project P, --everywhere and --platform" in result.err
    assert logged_in.calls == []


@pytest.mark.parametrize(
    ("typed", "name"),
    [("app", "serviceAccounts/demo--app"), ("serviceAccounts/app", "serviceAccounts/app")],
)
def test_a_short_name_of_an_application_is_of_the_chosen_project(
    command: Run, logged_in: FakeApi, typed: str, name: str
) -> None:
    answer = service_account_pb2.ServiceAccount(name=name)
    logged_in.answers["ServiceAccountService.GetServiceAccount"] = answer
    assert command("service-account", "get", typed).code == 0
    assert logged_in.calls[0].request.name == name


@pytest.mark.parametrize("older", [False, True])
def test_a_role_is_given_to_the_application_that_is_there(
    command: Run, logged_in: FakeApi, *, older: bool
) -> None:
    made = binding_pb2.Binding(name="bindings/b", scope="projects/demo")

    def create(request: binding_service_pb2.CreateBindingRequest) -> object:
        is_there = older or request.binding.principal == "serviceAccounts/demo--app"
        return made if is_there else NOBODY

    logged_in.answers["BindingService.CreateBinding"] = create
    give = ("binding", "create", "--principal", "serviceAccounts/app", "--role", "inference")
    assert command(*give).code == 0
    asked = [call.request.binding.principal for call in logged_in.calls]
    assert asked == ["serviceAccounts/app", "serviceAccounts/demo--app"][: 1 if older else 2]


def test_what_is_not_there_is_asked_for_once(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["BindingService.CreateBinding"] = NOBODY
    assert command(*GIVE).code == 1
    assert len(logged_in.calls) == 1


def test_what_is_wrong_beside_the_principal_is_said_at_once(
    command: Run, logged_in: FakeApi
) -> None:
    wrong = InvalidInput("there is no such role", fields={"binding.role": "is none"})
    logged_in.answers["BindingService.CreateBinding"] = wrong
    give = ("binding", "create", "--principal", "serviceAccounts/app", "--role", "nosuch")
    assert "there is no such role" in command(*give).err
    assert len(logged_in.calls) == 1


def test_a_word_alone_is_nobody(command: Run, logged_in: FakeApi) -> None:
    result = command("binding", "create", "--principal", "dora", "--role", "owner")
    assert (result.code, "write users/dora for a person" in result.err) == (2, True)
    assert logged_in.calls == []
