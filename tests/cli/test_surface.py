"""The commands and options people rely on, frozen in one file that a reviewer reads."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from appliance.cli.command import REPEATABLE, ServerCommand
from appliance.cli.main import NOUNS, appliance
from appliance.client.methods import SERVICES
from tests.fakes.command_line import Run

SURFACE = Path(__file__).with_name("surface.txt")
SHARED = {"-o", "--output", "--context", "--code-file", "--show-permission"}
LISTS = {"--filter", "--sort", "--limit", "--watch", "--no-headers"}


def commands(
    command: click.Command = appliance, path: str = "appliance"
) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, f"{path} {name}")
    else:
        yield path, command


def line(path: str, command: click.Command) -> str:
    options = [param for param in command.params if isinstance(param, click.Option)]
    words = [
        param.make_metavar(click.Context(command))
        for param in command.params
        if isinstance(param, click.Argument)
    ]
    flags = {flag for option in options for flag in option.opts}
    kind = "calls"
    if flags >= LISTS:
        kind, flags = "lists", flags - LISTS
    if isinstance(command, ServerCommand):
        assert flags >= SHARED
        return " ".join([path, *words, *sorted(flags - SHARED), f"({kind})"])
    return " ".join([path, *words, *sorted(flags)])


def test_the_surface_is_the_frozen_one() -> None:
    assert [line(*each) for each in commands()] == SURFACE.read_text().splitlines()


def test_every_option_and_command_says_what_it_is_for() -> None:
    for path, command in commands():
        assert command.help, path
        for param in command.params:
            if isinstance(param, click.Option):
                assert param.help, (path, param.name)


def test_every_noun_is_listed_and_there() -> None:
    context = click.Context(appliance)
    for noun in NOUNS:
        command = appliance.get_command(context, noun)
        assert command is not None
        assert command.name == noun


def imported(*lines: str) -> set[str]:
    """The modules that these commands import."""
    script = "; ".join(
        [
            "import sys",
            "from appliance.cli.main import run",
            *(f"run({line!r}.split())" for line in lines),
            "print(*sys.modules, file=sys.stderr)",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stderr.split())


def test_help_and_completion_are_quick_because_they_import_little() -> None:
    heavy = {"grpc", "rich", "yaml", "cryptography", "qrcode"}
    lines = ("--help", "job --help", "completion zsh", "context list", "audit verify --help")
    lines += ("job list --help", "dataset describe --help", "endpont list", "version --help")
    assert (heavy | {"google.protobuf"}) & imported(*lines) == set()
    # Its help says the defaults, which stand in the proto.
    assert heavy & imported("job train --help") == set()


def test_permissions_are_shown_without_a_server(command: Run) -> None:
    shown = command("user", "create", "--show-permission")
    assert (shown.code, shown.err) == (0, "")
    assert [row.split() for row in shown.out.splitlines()] == [
        ["PERMISSION", "FRESH", "CODE", "CALL"],
        ["users.create", "yes", "/appliance.api.access.v1.UserService/CreateUser"],
    ]


def test_every_command_that_calls_can_show_its_permissions(command: Run) -> None:
    for path, each in commands():
        if isinstance(each, ServerCommand):
            shown = command(*path.split()[1:], "-o", "json", "--show-permission")
            assert shown.code == 0, (path, shown.err)
            assert "/appliance.api." in shown.out, path


def test_every_call_of_people_has_a_command() -> None:
    used = {
        name for _, each in commands() if isinstance(each, ServerCommand) for name in each.methods
    }
    there = set()
    for service, path in SERVICES.items():
        module = importlib.import_module(f"appliance.api.{path}_pb2")
        methods = module.DESCRIPTOR.services_by_name[service].methods
        there |= {f"{service}.{method.name}" for method in methods}
    # Commands of 0.1.0 send everything in one stream.
    assert there - used == {
        "DatasetService.UploadDatasetVersion",
        "ModelService.ImportModelVersion",
    }
    assert used <= there


def test_only_what_can_be_repeated_takes_a_request_id() -> None:
    there = set()
    for service, path in SERVICES.items():
        module = importlib.import_module(f"appliance.api.{path}_pb2")
        for method in module.DESCRIPTOR.services_by_name[service].methods:
            if "request_id" in method.input_type.fields_by_name:
                there.add(f"{service}.{method.name}")
    assert there == REPEATABLE
    for path, each in commands():
        if isinstance(each, ServerCommand):
            flags = {flag for option in each.params for flag in option.opts}
            assert ("--request-id" in flags) == bool(there.intersection(each.methods)), path


def test_a_closed_stdout_is_no_fault_of_the_command() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -m appliance.cli.main context list >&-', sys.executable],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_shell_completes_commands_and_options() -> None:
    def completed(words: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "appliance.cli.main"],
            env={
                "PATH": "/usr/bin:/bin",
                "_APPLIANCE_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(len(words.split(" ")) - 1),
            },
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return [line.removeprefix("plain,") for line in done.stdout.splitlines()]

    assert completed("appliance job tr") == ["train"]
    assert completed("appliance job quantize one --sch") == ["--scheme"]
    assert completed("appliance job quantize one --scheme ") == ["w8a8-int8"]
