"""Names, specs and tables: what is typed, what is sent, what is printed."""

from contextlib import redirect_stdout
from io import StringIO

import click
import pytest

from appliance.api.jobs.v1 import job_pb2
from appliance.cli import fields as options
from appliance.cli import naming, output
from appliance.cli.following import Duration
from appliance.cli.job import AXES
from appliance.cli.job_view import line, view
from appliance.core import values
from appliance.core.errors import InvalidInput
from appliance.kinds import KINDS
from tests.fakes.command_line import Run


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("dataset", "docs", "projects/demo/datasets/docs"),
        ("dataset", "projects/other/datasets/docs", "projects/other/datasets/docs"),
        ("datasetVersion", "docs/3", "projects/demo/datasets/docs/versions/3"),
        ("datasetVersion", "docs/versions/3", "projects/demo/datasets/docs/versions/3"),
        ("user", "alice", "users/alice"),
        ("user", "users/alice", "users/alice"),
        ("project", "demo", "projects/demo"),
        ("project", "projects/demo", "projects/demo"),
    ],
)
def test_short_names_become_full_ones(kind: str, text: str, expected: str) -> None:
    assert naming.complete(kind, text, "demo") == expected
    assert naming.complete(kind, text, "projects/demo") == expected


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("dataset", "docs/3"),
        ("datasetVersion", "docs"),
        ("dataset", "../x"),
        ("dataset", "projects/demo/models/m"),
        ("user", "Alice"),
        ("dataset", ""),
    ],
)
def test_what_is_no_name_is_refused(kind: str, text: str) -> None:
    with pytest.raises(InvalidInput):
        naming.complete(kind, text, "demo")


def test_a_short_name_needs_a_project() -> None:
    with pytest.raises(click.UsageError, match="set-project"):
        naming.complete("dataset", "docs", "")
    with pytest.raises(click.UsageError, match="no project is chosen"):
        naming.complete("serviceAccount", "app", "")
    assert naming.complete("serviceAccount", "demo--app", "") == "serviceAccounts/demo--app"
    assert naming.complete("user", "alice", "") == "users/alice"


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_field_of_a_spec_has_a_flag_and_nothing_else(kind: str) -> None:
    message = job_pb2.Job.DESCRIPTOR.fields_by_name[kind].message_type
    fields = set()
    for field in message.fields:
        if field.message_type is None:
            fields.add(field.name)
        else:
            fields |= {f"{field.name}.{part.name}" for part in field.message_type.fields}
    assert {field.path for field in options.fields_of(message)} == fields
    assert all(field.help for field in options.fields_of(message))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("train", "Highest learning rate. [default: 0.001]"),
        ("train", "and fill a pipeline. [default: 1; with a pipeline twice its ranks]"),
        ("train", "AdamW weight decay. [default: 0]"),
        ("train", "where there is a pipeline. [default: 1F1B]"),
        ("prepare", "Tokens per shard. [default: 1048576]"),
        ("evaluate", "at most the model's context. [default: 512]"),
        ("evaluate", "--output-report REPORT Report to write"),
    ],
)
def test_the_help_says_what_a_field_is_otherwise(command: Run, kind: str, said: str) -> None:
    assert said in " ".join(command("job", kind, "--help").out.split())


def test_a_table_shows_every_number_that_a_job_runs_with() -> None:
    job = job_pb2.Job(train=job_pb2.TrainSpec(learning_rate=0.5))
    values.fill(job.train)
    said = {" ".join(each.split()) for each in shown(output.plain(job)).splitlines()}
    assert said >= {"Learning rate: 0.5", "Gradient clip: 1", "Weight decay: 0", "Seed: 0"}


def shown(value: object) -> str:
    with redirect_stdout(StringIO()) as out:
        output.show(value, "table")
    return out.getvalue()


def test_a_spec_has_what_was_given_alone() -> None:
    fields = options.fields_of(job_pb2.PrepareSpec.DESCRIPTOR)
    typed = {field.variable: None for field in fields} | {
        "dataset": ("docs/1", "more/2"),
        "output_dataset": "tokens",
        "seed": 0,
        "keep_personal_data": False,
    }
    spec = options.message_of(fields, typed, lambda kind, text: naming.complete(kind, text, "p"))
    assert spec == {
        "datasets": [
            "projects/p/datasets/docs/versions/1",
            "projects/p/datasets/more/versions/2",
        ],
        "output_dataset": "projects/p/datasets/tokens",
        # A zero that was given is a zero.
        "seed": 0,
    }
    quantize = {"model": "m/1", "output_model": "q", "scheme": "w8a8-int8"}
    fields = options.fields_of(job_pb2.QuantizeSpec.DESCRIPTOR)
    spec = options.message_of(fields, quantize, lambda _, text: text)
    assert job_pb2.QuantizeSpec(**spec).scheme == job_pb2.QuantizeSpec.SCHEME_W8A8_INT8


def test_words_of_an_enum_are_typed_in_small_letters() -> None:
    (scheme,) = [
        field.kind
        for field in options.fields_of(job_pb2.QuantizeSpec.DESCRIPTOR)
        if field.path == "scheme"
    ]
    assert scheme == {"w8a8-int8": "SCHEME_W8A8_INT8"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("data=2,tensor=4", {"data": 2, "tensor": 4}), ("pipeline=3", {"pipeline": 3})],
)
def test_a_mesh_in_one_word(text: str, expected: dict[str, int]) -> None:
    assert options.numbers_of(text, "--mesh", AXES) == expected


@pytest.mark.parametrize("text", ["", "data", "data=two", "data=1,data=2", "depth=2"])
def test_a_wrong_mesh_is_wrong_usage(text: str) -> None:
    with pytest.raises(click.UsageError):
        options.numbers_of(text, "--mesh", AXES)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("15m", 900), ("2h", 7200), ("1d12h", 129600)]
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1y", "m", "nan", "1h2"])
def test_no_durations(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Duration().convert(text, None, None)


def test_resources_keep_the_order_of_their_fields() -> None:
    job = output.plain(job_pb2.Job(name="projects/p/jobs/j", restarts=2))
    assert list(job)[:3] == ["name", "uid", "state"]


def test_a_line_says_how_far_a_job_is() -> None:
    progress = job_pb2.Progress(
        step=3, total=9, metrics={"grad_norm": 1.0, "loss": 2.5, "tokens_per_second": 1200}
    )
    job = job_pb2.Job(
        name="projects/p/jobs/j",
        state="STATE_RUNNING",
        restarts=1,
        progress=progress,
        train=job_pb2.TrainSpec(),
    )
    assert line(output.plain(job)) == (
        "j  RUNNING    step 3/9  loss 2.5, tokens per second 1200, grad norm 1  restarts 1"
    )


def test_a_terminal_shows_one_live_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    job = job_pb2.Job(name="projects/p/jobs/j", state="STATE_RUNNING", state_reason="\x1b]0;x")
    with view("table") as show:
        show(output.plain(job))
        job.progress.MergeFrom(job_pb2.Progress(step=3, total=9, message="learning"))
        show(output.plain(job))
    shown = capsys.readouterr().out
    assert "3/9" in shown
    assert "learning" in shown
    assert "\x1b]0" not in shown
