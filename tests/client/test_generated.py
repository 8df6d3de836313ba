"""The methods of the SDK are those of the protos, with and without asyncio, and frozen."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import appliance.client as sdk
from appliance.client import Appliance, AsyncAppliance
from appliance.client.methods import SERVICES, find
from deploy.sdk.generate import (
    ATTRIBUTES,
    FOLDER,
    WITHOUT,
    WITHOUT_RPC,
    generated,
    method_name,
)

SURFACE = Path(__file__).with_name("surface.txt")


def made(kind: type[Any]) -> Any:
    return kind("127.0.0.1:1", ca=b"-----BEGIN CERTIFICATE-----", token="t")


def signature(function: Any) -> str:
    """Arguments as a caller sees them, and what is returned."""
    found = inspect.signature(function)
    bare = [each.replace(annotation=each.empty) for each in found.parameters.values()]
    arguments = found.replace(parameters=bare, return_annotation=found.empty)
    return f"{arguments} -> {found.return_annotation}"


def surface(kind: type[Any]) -> Iterator[tuple[str, str]]:
    """Everything public of a client, by its path."""
    client = made(kind)
    yield kind.__name__, signature(kind)
    for name, value in sorted(inspect.getmembers(client)):
        if name.startswith("_"):
            continue
        if inspect.ismethod(value):
            yield name, signature(value)
            continue
        for inner, method in sorted(inspect.getmembers(value, inspect.ismethod)):
            if not inner.startswith("_"):
                yield f"{name}.{inner}", signature(method)


def lines() -> list[str]:
    names = [f"from appliance.client import {name}" for name in sdk.__all__]
    return [*names, *(f"{path}{text}" for path, text in surface(Appliance))]


def test_the_surface_is_the_frozen_one() -> None:
    """`python -m tests.client.test_generated` writes it anew; a reviewer reads what changed."""
    assert lines() == SURFACE.read_text().splitlines()


def test_both_flavours_have_the_same_names_arguments_and_answers() -> None:
    plain, awaited = dict(surface(Appliance)), dict(surface(AsyncAppliance))
    plain.pop("Appliance")
    awaited.pop("AsyncAppliance")

    def same(text: str) -> str:
        return text.replace("AsyncGenerator[", "Generator[").replace(", None, None]", ", None]")

    assert {k: same(v) for k, v in plain.items()} == {k: same(v) for k, v in awaited.items()}


def test_the_generated_code_is_that_of_the_protos() -> None:
    stale = {name for name, text in generated().items() if (FOLDER / name).read_text() != text}
    assert stale == set(), "run `make proto` and commit the result"


def test_every_service_is_there_or_says_why_not() -> None:
    assert {*ATTRIBUTES, *WITHOUT} == set(SERVICES)
    assert not {*ATTRIBUTES} & {*WITHOUT}


def test_every_call_is_there_or_says_why_not() -> None:
    client = made(Appliance)
    for service, attribute in ATTRIBUTES.items():
        for rpc in methods_of(service):
            name = f"{service}.{rpc.name}"
            if not find(name).rule.request_streaming and name not in WITHOUT_RPC:
                assert hasattr(getattr(client, attribute), method_name(service, rpc.name)), name


def methods_of(service: str) -> Any:
    module = importlib.import_module(f"appliance.api.{SERVICES[service]}_pb2")
    return module.DESCRIPTOR.services_by_name[service].methods


def test_no_two_calls_of_a_service_have_one_name() -> None:
    for service in ATTRIBUTES:
        names = [method_name(service, rpc.name) for rpc in methods_of(service)]
        assert len(names) == len(set(names)), service


@pytest.mark.parametrize(
    ("rpc", "name"),
    [
        ("CreateJob", "create"),
        ("ListJobs", "list"),
        ("ListJobMetrics", "list_metrics"),
        ("WatchJob", "watch"),
    ],
)
def test_what_calls_are_named(rpc: str, name: str) -> None:
    assert method_name("JobService", rpc) == name


if __name__ == "__main__":
    SURFACE.write_text("\n".join(lines()) + "\n")
