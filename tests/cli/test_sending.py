"""Uploads by part, as the command sends them: what is missing, past what passes, and then told."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.api.data.v1 import dataset_pb2, upload_pb2, upload_service_pb2
from appliance.api.models.v1 import model_pb2
from appliance.client import part_upload
from appliance.core.errors import (
    ApplianceError,
    Denied,
    Exhausted,
    InvalidInput,
    StoreFull,
    Unauthenticated,
    Unavailable,
)
from tests.fakes import tiny_model
from tests.fakes.command_line import Run
from tests.fakes.control_api import FakeApi

DEMO = "projects/demo"
NAME = f"{DEMO}/uploads/0123"
DOCS = f"{DEMO}/datasets/docs"
State = upload_pb2.Upload.State


class Server:
    """Keeps parts as the control plane does."""

    def __init__(self, api: FakeApi, artifact: str = DOCS) -> None:
        self.upload = upload_pb2.Upload(
            name=NAME, artifact=artifact, state=State.STATE_OPEN, part_bytes=1000
        )
        self.parts: dict[int, bytes] = {}
        self.grants = 0
        self.version = f"{artifact}/versions/1"
        self.trouble: list[ApplianceError] = []
        """What the next parts are answered with."""
        self.api = api
        api.answers |= {
            f"UploadService.{name}": getattr(self, name)
            for name in (
                *("CreateUpload", "GrantUpload", "UploadPart", "GetUpload", "ListUploads"),
                *("ListUploadParts", "CommitUpload", "AbortUpload"),
            )
        }
        api.answers["DatasetService.GetDatasetVersion"] = dataset_pb2.DatasetVersion(
            name=self.version, documents=1
        )
        api.answers["ModelService.GetModelVersion"] = model_pb2.ModelVersion(name=self.version)

    def CreateUpload(self, request: Any) -> Any:
        assert request.parent == DEMO
        assert request.upload.artifact == self.upload.artifact
        kept = [each for each in request.upload.files if each.file != "README.md"]
        self.upload.files.extend(kept)
        return self.upload

    def GrantUpload(self, request: Any) -> Any:
        self.grants += 1
        return upload_service_pb2.GrantUploadResponse(token=f"grant-{self.grants}")

    def UploadPart(self, messages: list[Any]) -> Any:
        if self.trouble:
            return self.trouble.pop(0)
        first, content = messages[0], b"".join(each.data for each in messages)
        assert (first.name, first.sha256) == (NAME, hashlib.sha256(content).hexdigest())
        assert max(each.ByteSize() for each in messages) < 4 << 20
        self.parts[first.number] = content
        return upload_pb2.UploadedPart(number=first.number, sha256=first.sha256)

    def GetUpload(self, request: Any) -> Any:
        self.upload.parts = len(self.parts)
        if self.upload.state == State.STATE_COMMITTING:
            self.upload.state = State.STATE_COMMITTED
            self.upload.version = self.version
        return self.upload

    def ListUploads(self, request: Any) -> Any:
        return upload_service_pb2.ListUploadsResponse(uploads=[self.upload])

    def ListUploadParts(self, request: Any) -> Any:
        numbers = [n for n in sorted(self.parts) if n > int(request.page_token or -1)]
        listed = [
            upload_pb2.UploadedPart(number=n, sha256=hashlib.sha256(self.parts[n]).hexdigest())
            for n in numbers[:2]
        ]
        token = str(numbers[1]) if len(numbers) > 2 else ""
        return upload_service_pb2.ListUploadPartsResponse(parts=listed, next_page_token=token)

    def CommitUpload(self, request: Any) -> Any:
        digests = [hashlib.sha256(self.parts[n]).digest() for n in range(len(self.parts))]
        expected = hashlib.sha256(b"".join(digests)).hexdigest()
        if (request.parts, request.sha256) != (len(self.parts), expected):
            return InvalidInput("sha256: other parts", fields={"sha256": "other parts"})
        if self.upload.state == State.STATE_OPEN:
            self.upload.state = State.STATE_COMMITTING
        return self.upload

    def AbortUpload(self, request: Any) -> Any:
        return upload_service_pb2.AbortUploadResponse()

    def texts(self) -> list[str]:
        batches = [
            upload_pb2.DocumentBatch.FromString(self.parts[n]) for n in range(len(self.parts))
        ]
        return [each.text for batch in batches for each in batch.documents]

    def sent(self) -> int:
        return len(self.api.named("UploadService.UploadPart"))


@pytest.fixture
def server(logged_in: FakeApi) -> Server:
    return Server(logged_in)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_upload, "LOOK_FIRST", 0.001)
    monkeypatch.setattr(part_upload, "FIRST_PAUSE", part_upload.FIRST_PAUSE / 1000)


@pytest.fixture
def corpus(home: Path) -> Path:
    """Five documents of 3 MB, which make five parts."""
    folder = home / "corpus"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text(str(number) * 3_000_000)
    return folder


def test_text_is_uploaded_whole(command: Run, server: Server, home: Path) -> None:
    (home / "corpus").mkdir()
    (home / "corpus" / "a.txt").write_text("hello")
    result = command("dataset", "upload", "docs", str(home / "corpus"), "-o", "json")
    assert json.loads(result.out)["name"] == f"{DOCS}/versions/1"
    assert server.texts() == ["hello"]
    calls = {call.name: call.metadata["authorization"] for call in server.api.calls}
    assert calls["UploadService.UploadPart"] == calls["UploadService.CommitUpload"]
    assert calls["UploadService.UploadPart"] == "Bearer grant-1"


def test_a_bad_file_uploads_nothing_and_leaves_nothing_open(
    command: Run, server: Server, home: Path
) -> None:
    (home / "a.jsonl").write_text("nothing")
    result = command("dataset", "upload", "docs", str(home / "a.jsonl"))
    assert (result.code, "line 1" in result.err) == (1, True)
    assert [call.request.name for call in server.api.named("UploadService.AbortUpload")] == [NAME]


def test_resume_sends_what_is_missing(command: Run, server: Server, corpus: Path) -> None:
    assert command("dataset", "upload", "docs", str(corpus)).code == 0
    assert server.sent() == 5
    whole = dict(server.parts)
    server.parts = {number: whole[number] for number in (0, 2, 3)}
    server.upload.state, server.upload.parts = State.STATE_OPEN, 3
    server.api.calls.clear()
    assert command("dataset", "upload", "docs", str(corpus), "--resume").code == 0
    assert (server.sent(), server.parts) == (2, whole)
    assert server.api.named("UploadService.CreateUpload") == []
    # And once more, when all that was lost is the answer.
    assert command("dataset", "upload", "docs", str(corpus), "--resume").code == 0
    assert server.sent() == 2


def test_files_that_have_changed_are_noticed_and_nothing_is_sent_over(
    command: Run, server: Server, corpus: Path
) -> None:
    assert command("dataset", "upload", "docs", str(corpus)).code == 0
    server.upload.state, server.upload.parts = State.STATE_OPEN, 5
    (corpus / "1.txt").write_text("changed")
    before = dict(server.parts)
    result = command("dataset", "upload", "docs", str(corpus), "--resume")
    assert result.code == 1
    assert "files have changed since it was sent" in result.err
    assert server.parts == before


def test_what_passes_is_waited_for(command: Run, server: Server, corpus: Path) -> None:
    server.trouble = [
        Unavailable("the server starts"),
        Exhausted("too many parts", retry_after=0.001),
        Unauthenticated("this token is not valid"),
        Unavailable("the server starts"),
    ]
    result = command("dataset", "upload", "docs", str(corpus))
    assert (result.code, len(server.parts)) == (0, 5)
    assert "the server starts; trying again" in result.err
    assert server.grants == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StoreFull("no space is left for part-00001.jsonl in the object store: free some"), 1),
        (Exhausted("uploads of this project may have 5 bytes together"), 1),
        (Denied("users/dora may not do this"), 5),
    ],
)
def test_what_does_not_pass_is_said_with_how_to_go_on(
    command: Run, server: Server, corpus: Path, error: ApplianceError, code: int
) -> None:
    assert command("dataset", "upload", "docs", str(corpus)).code == 0
    del server.parts[4]
    server.upload.state, server.upload.parts = State.STATE_OPEN, 4
    server.trouble = [error]
    result = command("dataset", "upload", "docs", str(corpus), "--hidden", "--resume")
    assert result.code == code
    assert error.message in result.err
    again = f"`appliance dataset upload docs {corpus} --hidden --upload 0123`"
    assert f"go on with {again}" in result.err.replace("\n", " ")


def test_a_repeat_with_the_same_request_id_goes_on(
    command: Run, server: Server, corpus: Path
) -> None:
    request_id = ("--request-id", "123e4567-e89b-42d3-a456-426614174000")
    first = upload_pb2.Upload(name=NAME, artifact=DOCS, state=State.STATE_OPEN)
    server.api.answers["UploadService.CreateUpload"] = first
    for sent in (5, 5):
        assert command("dataset", "upload", "docs", str(corpus), *request_id).code == 0
        assert server.sent() == sent
    (call, _) = server.api.named("UploadService.CreateUpload")
    assert call.request.request_id == request_id[1]


def test_which_upload_is_asked_when_there_are_several(
    command: Run, server: Server, corpus: Path
) -> None:
    other = upload_pb2.Upload(name=f"{NAME}4", artifact=DOCS, state=State.STATE_OPEN)
    elsewhere = upload_pb2.Upload(name=f"{NAME}5", artifact=f"{DOCS}-2", state=State.STATE_OPEN)
    rows = [other, server.upload, elsewhere]
    listed = upload_service_pb2.ListUploadsResponse(uploads=rows)
    server.api.answers["UploadService.ListUploads"] = listed
    result = command("dataset", "upload", "docs", str(corpus), "--resume")
    assert (result.code, "say --upload, of 01234, 0123" in result.err) == (1, True)
    assert command("dataset", "upload", "docs", str(corpus), "--upload", "0123").code == 0
    server.api.answers["UploadService.ListUploads"] = upload_service_pb2.ListUploadsResponse()
    result = command("dataset", "upload", "docs", str(corpus), "--resume")
    assert (result.code, "leave out --resume" in result.err) == (6, True)
    rows = json.loads(command("upload", "list", "-o", "json").out)
    assert rows == []
    assert "is aborted" in command("upload", "abort", "0123").out


def test_a_version_that_waits_or_failed_is_said(
    command: Run, server: Server, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = upload_pb2.Upload(name=NAME, state=State.STATE_FAILED, message="'a' was used before")
    waits = upload_pb2.Upload(
        name=NAME, state=State.STATE_COMMITTING, message="no space is left; tried again at 10:00"
    )
    answers = [waits, failed]
    look: Callable[[Any], Any] = lambda _: answers.pop(0)  # noqa: E731 - an answer
    server.api.answers["UploadService.GetUpload"] = look
    result = command("dataset", "upload", "docs", str(corpus))
    assert result.code == 1
    assert "error: 'a' was used before" in result.err
    assert "no space is left; tried again at 10:00" in result.err.replace("\n", " ")
    assert "--resume" not in result.err


def test_a_model_is_taken_in_with_its_weights_last(
    command: Run, logged_in: FakeApi, home: Path
) -> None:
    server = Server(logged_in, f"{DEMO}/models/m")
    folder, files = model(home / "m")
    result = command("model", "import", "m", str(folder))
    assert (result.code, "left out: README.md" in result.err) == (0, True)
    sent = [(each.file, each.size_bytes) for each in server.upload.files]
    assert sent == [(name, len(files[name])) for name in files]
    content = b"".join(server.parts[number] for number in sorted(server.parts))
    assert content == b"".join(files.values())
    server.upload.state = State.STATE_OPEN
    (folder / "generation_config.json").write_bytes(b"{}")
    result = command("model", "import", "m", str(folder), "--resume")
    assert (result.code, "bytes when the upload was begun and is now" in result.err) == (1, True)


def model(folder: Path) -> tuple[Path, dict[str, bytes]]:
    """A whole model in a folder, and its files in the order in which they are sent."""
    files = dict(sorted(tiny_model.files().items(), key=lambda each: ("tensors" in each[0], each)))
    folder.mkdir()
    for name, data in (files | {"README.md": b"for people"}).items():
        (folder / name).write_bytes(data)
    return folder, files


def test_a_dry_run_says_what_would_be_sent_and_what_works_and_calls_nobody(
    command: Run, logged_in: FakeApi, home: Path
) -> None:
    folder, files = model(home / "m")
    said = json.loads(command("model", "import", "m", str(folder), "--dry-run", "-o", "json").out)
    assert {each["file"]: each["size_bytes"] for each in said["files"]} == {
        name: len(data) for name, data in files.items()
    }
    assert said["left_out"] == [{"file": "README.md", "reason": "nobody here reads it"}]
    assert (said["family"], said["parameters"]) == ("Llama", tiny_model.PARAMETERS)
    assert said["size_bytes"] == sum(map(len, files.values()))
    assert "serve text" in said["works"]
    assert "prune" in {each["what"] for each in said["does_not_work"]}
    shown = command("model", "import", "m", str(folder), "--dry-run").out
    assert "Family:         Llama\n" in shown
    assert logged_in.calls == []


def test_what_cannot_be_used_is_said_line_by_line_and_nothing_is_sent(
    command: Run, logged_in: FakeApi, home: Path
) -> None:
    folder, _ = model(home / "m")
    (folder / "modeling_x.py").write_text("")
    (folder / "tokenizer.json").unlink()
    result = command("model", "import", "m", str(folder))
    assert (result.code, result.out, logged_in.calls) == (1, "", [])
    assert "error: 2 things in " in result.err
    assert "  'modeling_x.py': is refused: .py files can hold code." in result.err
    assert "  tokenizer.json: is missing; " in result.err


def test_the_command_to_go_on_with_has_every_option_that_was_given(
    command: Run, server: Server, corpus: Path
) -> None:
    server.trouble = [StoreFull("no space is left")] * 20
    result = command(
        *("dataset", "upload", DOCS, str(corpus), "--project", "other", "-o", "json"),
        *("--context", "here", "--upload", NAME),
    )
    expected = (
        f"`appliance dataset upload {DOCS} {corpus} --project other --output json --context here "
        f"--upload {NAME}`"
    )
    assert expected in result.err.replace("\n", " ")


def test_nothing_is_said_to_go_on_with_where_that_cannot_help(
    command: Run, server: Server, corpus: Path
) -> None:
    assert command("dataset", "upload", "docs", str(corpus)).code == 0
    (corpus / "1.txt").write_text("changed")
    resumed = ("dataset", "upload", "docs", str(corpus), "--resume")
    done = command(*resumed)
    assert (done.code, "go on with" in done.err) == (1, False)
    assert f"became {DOCS}/versions/1: leave out --resume" in done.err.replace("\n", " ")
    server.upload.state = State.STATE_OPEN
    changed = command(*resumed)
    assert (changed.code, "go on with `" in changed.err) == (1, False)
    server.upload.state, server.upload.message = State.STATE_FAILED, "'a' was used before"
    server.api.calls.clear()
    failed = command("dataset", "upload", "docs", str(corpus), "--upload", "0123")
    assert (failed.code, "go on with `" in failed.err) == (1, False)
    assert "failed, and what was sent is gone: 'a' was used before" in failed.err
    assert server.api.named("UploadService.GrantUpload") == []


def test_an_upload_that_another_run_began_is_not_aborted(
    command: Run, server: Server, home: Path
) -> None:
    (home / "a.jsonl").write_text("nothing")
    result = command("dataset", "upload", "docs", str(home / "a.jsonl"), "--resume")
    assert (result.code, server.api.named("UploadService.AbortUpload")) == (1, [])


def test_ctrl_c_does_not_say_that_the_server_works_on(
    command: Run, server: Server, corpus: Path
) -> None:
    def interrupted(_: Any) -> Iterator[Any]:
        yield from ()
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("appliance.client.parts.text_parts", interrupted)
        result = command("dataset", "upload", "docs", str(corpus))
    assert (result.code, "work on the server goes on" in result.err) == (130, False)
    assert f"`appliance dataset upload docs {corpus} --upload 0123`" in result.err


def test_the_older_of_two_commands_says_that_another_one_goes_on(
    command: Run, server: Server, corpus: Path
) -> None:
    server.trouble = [Unauthenticated("this token is not valid: log in")] * 20
    result = command("dataset", "upload", "docs", str(corpus), "--upload", "0123")
    assert result.code == 1
    assert "another command goes on with this upload" in result.err.replace("\n", " ")
    assert ("log in" in result.err, "go on with `" in result.err) == (False, False)


def test_what_the_server_is_doing_is_waited_for_as_long_as_it_takes(
    command: Run, server: Server, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = itertools.count(step=100.0)
    monkeypatch.setattr(part_upload, "IN_FLIGHT", 1)
    monkeypatch.setattr(part_upload.time, "monotonic", lambda: next(now))
    compared = Unavailable("ids are compared", in_progress="ids")
    server.trouble = [compared] * 4
    assert command("dataset", "upload", "docs", str(corpus)).code == 0
    server.trouble = [Unavailable("it starts")] * 4
    server.parts.clear()
    server.upload.state, server.upload.parts = State.STATE_OPEN, 0
    assert command("dataset", "upload", "docs", str(corpus), "--upload", "0123").code == 7
