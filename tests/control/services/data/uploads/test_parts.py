"""Parts on their way in: checked, sealed, durable when they are answered, and nobody else's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pysqlite3 import dbapi2 as sqlite

from appliance.api.data.v1 import dataset_service_pb2
from appliance.api.data.v1 import upload_service_pb2 as rpc
from appliance.control.services.data import upload_layout
from appliance.control.services.data.storage_tasks import TaskKind
from appliance.control.services.data.upload_layout import UploadLayout
from appliance.control.store import tables
from appliance.core.errors import (
    AlreadyExists,
    ApplianceError,
    Denied,
    Exhausted,
    FailedPrecondition,
    InvalidInput,
    NotFound,
    Unavailable,
)
from appliance.core.identity import Principal, PrincipalKind
from tests.fakes.lab import ALICE, PROJECT, Lab
from tests.fakes.parts import DATASET, batch, begin, commit, digest, send
from tests.fakes.state import add_user

UUID = "123e4567-e89b-42d3-a456-426614174000"
SECRET = "the quick brown canary jumps over the sealed shard"
ONE, TWO = batch(("a", SECRET)), batch(("b", "zwölf \N{SNOWMAN}\n"), ("c", "x"))
BOB = replace(ALICE, principal=Principal(PrincipalKind.USER, "bob"))


@pytest.fixture(autouse=True)
def dataset(lab: Lab) -> None:
    request = dataset_service_pb2.CreateDatasetRequest(parent="projects/demo", dataset_id="raw")
    lab.datasets.create(ALICE, request)


def folders(lab: Lab) -> list[Path]:
    lab.work.storage.do_all()
    project = lab.objects / PROJECT
    return sorted(project.iterdir()) if project.exists() else []


def test_parts_in_any_order_become_a_version(lab: Lab) -> None:
    upload = begin(lab)
    assert (upload.artifact, upload.state, upload.creator) == (
        DATASET,
        upload.STATE_OPEN,
        "users/alice",
    )
    send(lab, upload.name, 1, TWO, pieces=1)
    part = send(lab, upload.name, 0, ONE)
    assert (part.number, part.sha256, part.size_bytes) == (0, digest(ONE), len(ONE))
    stored = b"".join(path.read_bytes() for path in lab.folder.rglob("*") if path.is_file())
    assert SECRET.encode() not in stored
    assert commit(lab, upload.name, [ONE, TWO]).state == upload.STATE_COMMITTING
    lab.work.storage.do_all()
    done = lab.uploads.get(ALICE, upload.name)
    assert (done.state, done.version) == (upload.STATE_COMMITTED, f"{DATASET}/versions/1")
    version = lab.datasets.get_version(ALICE, done.version)
    assert (version.documents, version.creator) == (3, "users/alice")
    reader = lab.work.artifacts.open(lab.version_row(done.version))
    lines = [json.loads(line) for file in reader.files() for line in reader.open(file)]
    assert [line["id"] for line in lines] == ["a", "b", "c"]
    assert lab.rows(tables.upload_part) == []


def test_the_same_part_again_is_answered_and_not_written_again(lab: Lab) -> None:
    upload = begin(lab)
    first = send(lab, upload.name, 0, ONE)
    (file,) = (path for path in lab.objects.rglob("part-*"))
    before = file.stat()
    assert send(lab, upload.name, 0, ONE) == first
    assert file.stat().st_ino == before.st_ino
    with pytest.raises(AlreadyExists, match="holds something else"):
        send(lab, upload.name, 0, TWO)
    assert lab.uploads.get(ALICE, upload.name).parts == 1


def test_which_parts_are_there_is_said_by_pages(lab: Lab) -> None:
    upload = begin(lab)
    contents = {number: batch((f"d{number}", "x")) for number in (0, 2, 3)}
    for number, content in contents.items():
        send(lab, upload.name, number, content)
    request = rpc.ListUploadPartsRequest(parent=upload.name, page_size=2)
    page = lab.uploads.list_parts(ALICE, request)
    request.page_token = page.next_page_token
    rest = lab.uploads.list_parts(ALICE, request)
    found = {part.number: part.sha256 for part in (*page.parts, *rest.parts)}
    assert found == {number: digest(content) for number, content in contents.items()}
    assert rest.next_page_token == ""


def test_a_restart_loses_no_part_that_was_answered(lab: Lab) -> None:
    upload = begin(lab)
    send(lab, upload.name, 0, ONE)
    half = lab.uploads.begin_part(
        ALICE, rpc.UploadPartRequest(name=upload.name, number=1, sha256=digest(TWO), data=TWO)
    )
    lab.restart()
    half._sealed.abort()  # type: ignore[union-attr]
    send(lab, upload.name, 1, TWO)
    commit(lab, upload.name, [ONE, TWO])
    # Again between the commit and the version.
    lab.restart()
    assert lab.uploads.get(ALICE, upload.name).version == f"{DATASET}/versions/1"


def test_an_id_is_in_an_upload_once_also_after_what_is_known_of_ids_was_lost(lab: Lab) -> None:
    upload = begin(lab)
    send(lab, upload.name, 0, ONE)
    with pytest.raises(InvalidInput, match="'a' was used before in this upload"):
        send(lab, upload.name, 1, batch(("x", "1"), ("a", "2")))
    with pytest.raises(InvalidInput, match="'z' was used before"):
        send(lab, upload.name, 1, batch(("z", "1"), ("z", "2")))
    (ids,) = (lab.folder / "uploads").iterdir()
    older = ids.read_bytes()
    with sqlite.connect(ids) as raw:
        raw.execute("DELETE FROM id")
        raw.execute("UPDATE boot SET id = 'an older one'")
    lost = ids.read_bytes()
    assert lost != older
    for broken in (b"", b"rubbish" * 1000, lost):
        lab.restart()
        ids.write_bytes(broken)
        for _ in range(2):
            with pytest.raises((InvalidInput, Unavailable)) as refused:
                send(lab, upload.name, 1, batch(("a", "2")))
        assert isinstance(refused.value, InvalidInput)
    # What was refused left nothing of its ids.
    send(lab, upload.name, 1, batch(("x", "1"), ("z", "2")))


def test_an_id_that_came_twice_unseen_ends_the_commit(lab: Lab) -> None:
    upload = begin(lab)
    send(lab, upload.name, 0, ONE)
    (ids,) = (lab.folder / "uploads").iterdir()
    again = batch(("a", "other"))
    ids.unlink()
    send(lab, upload.name, 1, again)
    commit(lab, upload.name, [ONE, again])
    lab.work.storage.do_all()
    failed = lab.uploads.get(ALICE, upload.name)
    assert (failed.state, "'a' was used before" in failed.message) == (upload.STATE_FAILED, True)
    assert (lab.rows(tables.artifact_version), folders(lab)) == ([], [])
    with pytest.raises(FailedPrecondition, match="failed: "):
        commit(lab, upload.name, [ONE, again])


@pytest.mark.attack
@pytest.mark.parametrize("change", ["gone", "cut"])
def test_a_part_that_is_not_there_any_more_ends_the_commit(lab: Lab, change: str) -> None:
    upload = begin(lab)
    send(lab, upload.name, 0, ONE)
    send(lab, upload.name, 1, TWO)
    file = next(iter(lab.objects.rglob("part-00001.jsonl")))
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    commit(lab, upload.name, [ONE, TWO])
    lab.work.storage.do_all()
    failed = lab.uploads.get(ALICE, upload.name)
    assert (failed.state, failed.message) == (
        upload.STATE_FAILED,
        "part 1 is not in the object store as it was",
    )


@pytest.mark.attack
@pytest.mark.parametrize(
    ("number", "content", "sha256", "text"),
    [
        (-1, ONE, "", "number must be 0 to"),
        (upload_layout.MAX_PARTS, ONE, "", "number must be 0 to"),
        (0, ONE, digest(TWO), "sha256 is not that of what came"),
        (0, ONE, "../../x", "sha256 must be a SHA-256 digest"),
        (0, ONE, digest(ONE).upper(), "sha256 must be"),
        (0, b"\xff\xff rubbish", "", "is no DocumentBatch"),
        (0, b"", "", "holds no document"),
        (0, batch(("a\nb", "x")), "", r"parts\[0\].documents\[0\].id must be 1 to 256 printable"),
        (0, batch(("a", "x"), ("b", "é" * (3 << 20))), "", r"documents\[1\].text of 'b' has"),
        (0, batch(*((str(n), "") for n in range(20_001))), "", "more than 20,000 documents"),
    ],
)
def test_a_part_that_is_not_right_is_refused_and_leaves_nothing(
    lab: Lab, number: int, content: bytes, sha256: str, text: str
) -> None:
    upload = begin(lab)
    with pytest.raises(InvalidInput, match=text):
        send(lab, upload.name, number, content, sha256=sha256)
    assert lab.uploads.get(ALICE, upload.name).parts == 0
    assert [path for path in lab.objects.rglob("*part*") if path.is_file()] == []
    send(lab, upload.name, 0, ONE)


@pytest.mark.attack
def test_a_part_larger_than_its_bound_is_refused_while_it_comes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.control.services.data.upload_parts.PART_BYTES", 100)
    upload = begin(lab)
    content = batch(("a", "x" * 90))
    first = rpc.UploadPartRequest(name=upload.name, sha256=digest(content), data=content)
    intake = lab.uploads.begin_part(ALICE, first)
    with pytest.raises(InvalidInput, match="more than 100 bytes"):
        intake.add(rpc.UploadPartRequest(data=batch(("b", "y" * 10))))
    intake.abort()


@pytest.mark.attack
def test_nobody_else_sees_or_touches_an_upload(lab: Lab) -> None:
    upload = begin(lab)
    send(lab, upload.name, 0, ONE)
    elsewhere = upload.name.replace("/demo/", "/other/")
    of_another = replace(ALICE, upload="f" * 32)
    attempts: list[Callable[[], object]] = []
    for caller, name in ((BOB, upload.name), (ALICE, elsewhere), (of_another, upload.name)):
        attempts += [
            lambda c=caller, n=name: lab.uploads.get(c, n),  # type: ignore[misc]
            lambda c=caller, n=name: send(lab, n, 1, TWO, caller=c),  # type: ignore[misc]
            lambda c=caller, n=name: send(lab, n, 0, ONE, caller=c),  # type: ignore[misc]
            lambda c=caller, n=name: commit(lab, n, [ONE], caller=c),  # type: ignore[misc]
            lambda c=caller, n=name: lab.uploads.abort(c, rpc.AbortUploadRequest(name=n)),  # type: ignore[misc]
            lambda c=caller, n=name: lab.uploads.grant(c, rpc.GrantUploadRequest(name=n)),  # type: ignore[misc]
            lambda c=caller, n=name: lab.uploads.list_parts(
                c, rpc.ListUploadPartsRequest(parent=n)
            ),  # type: ignore[misc]
        ]
    for attempt in attempts:
        with pytest.raises(NotFound, match="or you hold no role there"):
            attempt()
    mine = rpc.ListUploadsRequest(parent="projects/demo")
    assert [each.name for each in lab.uploads.list(ALICE, mine).uploads] == [upload.name]
    assert list(lab.uploads.list(BOB, mine).uploads) == []


@pytest.mark.attack
def test_an_upload_is_of_the_project_it_is_asked_for(lab: Lab) -> None:
    for artifact, error in (
        ("projects/other/datasets/raw", InvalidInput),
        ("projects/demo/datasets/none", NotFound),
        ("projects/demo/jobs/raw", InvalidInput),
        ("../raw", InvalidInput),
    ):
        with pytest.raises(error):
            begin(lab, artifact)
    add_user(lab.database, "bob")
    with pytest.raises(Denied, match=r"needs datasets.upload in projects/demo"):
        begin(lab, caller=BOB)
    with pytest.raises(InvalidInput, match="must be empty for a dataset"):
        begin(lab, files=[("config.json", 2)])
    assert lab.rows(tables.upload) == []


@pytest.mark.attack
@pytest.mark.parametrize(
    ("sent", "named", "error"),
    [
        ([0], [ONE, TWO], FailedPrecondition),
        ([1], [TWO], FailedPrecondition),
        ([0, 1], [ONE], FailedPrecondition),
        ([0, 1], [TWO, ONE], InvalidInput),
        ([0, 1], [ONE, ONE], InvalidInput),
        ([], [], FailedPrecondition),
    ],
)
def test_a_commit_names_the_parts_that_are_there_in_their_order(
    lab: Lab, sent: list[int], named: list[bytes], error: type[ApplianceError]
) -> None:
    upload = begin(lab)
    for number in sent:
        send(lab, upload.name, number, (ONE, TWO)[number])
    with pytest.raises(error):
        commit(lab, upload.name, named)
    for number in (0, 1):
        send(lab, upload.name, number, (ONE, TWO)[number])
    commit(lab, upload.name, [ONE, TWO])


def test_a_repeat_of_everything_has_the_same_answers(lab: Lab) -> None:
    upload = begin(lab, request_id=UUID)
    assert begin(lab, request_id=UUID).name == upload.name
    send(lab, upload.name, 0, ONE)
    commit(lab, upload.name, [ONE])
    lab.work.storage.do_all()
    done = commit(lab, upload.name, [ONE])
    assert (done.state, done.version) == (done.STATE_COMMITTED, f"{DATASET}/versions/1")
    with pytest.raises(InvalidInput, match="committed with other parts"):
        commit(lab, upload.name, [TWO])
    with pytest.raises(FailedPrecondition, match="takes no more parts"):
        send(lab, upload.name, 1, TWO)
    with pytest.raises(FailedPrecondition, match="was committed and is projects"):
        lab.uploads.abort(ALICE, rpc.AbortUploadRequest(name=upload.name))


def test_what_is_aborted_or_expires_goes_with_everything(lab: Lab) -> None:
    aborted, expired, kept = begin(lab), begin(lab), begin(lab)
    for upload in (aborted, expired, kept):
        send(lab, upload.name, 0, ONE)
    lab.uploads.abort(ALICE, rpc.AbortUploadRequest(name=aborted.name))
    with pytest.raises(NotFound):
        send(lab, aborted.name, 1, TWO)
    lab.time.seconds += 2 * 86400
    send(lab, kept.name, 1, TWO)
    lab.time.seconds += 86400 + 60
    with pytest.raises(FailedPrecondition, match="has expired"):
        send(lab, expired.name, 1, TWO)
    lab.look()
    assert [row.uid for row in lab.rows(tables.upload)] == [kept.name.rpartition("/")[2]]
    (version,) = lab.rows(tables.artifact_version)
    assert [path.name for path in folders(lab)] == [version.uid]
    assert len(list((lab.folder / "uploads").iterdir())) == 1
    commit(lab, kept.name, [ONE, TWO])
    lab.work.storage.do_all()
    lab.time.seconds += 86400 + 60
    lab.look()
    assert (lab.rows(tables.upload), list((lab.folder / "uploads").iterdir())) == ([], [])
    assert len(folders(lab)) == 1


def test_a_part_that_comes_while_its_upload_goes_leaves_nothing(lab: Lab) -> None:
    upload = begin(lab)
    first = rpc.UploadPartRequest(name=upload.name, sha256=digest(ONE), data=ONE)
    slow = lab.uploads.begin_part(ALICE, first)
    lab.uploads.abort(ALICE, rpc.AbortUploadRequest(name=upload.name))
    lab.work.storage.do_all()
    with pytest.raises(FailedPrecondition, match="aborted meanwhile"):
        slow.close()
    slow.abort()
    assert folders(lab) == []
    assert list((lab.folder / "uploads").glob("*")) == []


def test_how_many_are_open_is_bounded(lab: Lab) -> None:
    uploads = [begin(lab) for _ in range(16)]
    with pytest.raises(Exhausted, match="you have 16 open uploads in projects/demo"):
        begin(lab)
    lab.uploads.abort(ALICE, rpc.AbortUploadRequest(name=uploads[0].name))
    begin(lab)
    send(lab, uploads[1].name, 0, ONE)
    (file,) = lab.objects.rglob("part-*")
    lab.work._parts._project_bytes = file.stat().st_size
    with pytest.raises(Exhausted, match="bytes together"):
        send(lab, uploads[1].name, 1, TWO)


def test_every_part_of_a_model_has_its_place() -> None:
    size = upload_layout.PART_BYTES
    layout = UploadLayout([("a", 2 * size + 1), ("b", 0), ("c", size)])
    pieces = [layout.piece(number) for number in range(layout.parts)]
    assert [(each.file, each.size, each.whole) for each in pieces] == [
        ("a", size, False),
        ("a", size, False),
        ("a", 1, False),
        ("b", 0, True),
        ("c", size, True),
    ]
    assert [list(layout.numbers(place)) for place in range(3)] == [[0, 1, 2], [3], [4]]


def test_commits_leave_threads_for_other_work(lab: Lab) -> None:
    for _ in range(3):
        upload = begin(lab)
        send(lab, upload.name, 0, ONE)
        commit(lab, upload.name, [ONE])
    tasks = lab.work.tasks
    first, second = tasks.take(TaskKind), tasks.take(TaskKind)
    assert first is not None
    assert second is not None
    assert (first.kind, second.kind, tasks.take(TaskKind)) == (
        TaskKind.COMMIT_UPLOAD,
        TaskKind.COMMIT_UPLOAD,
        None,
    )
    tasks.done(first)
    third = tasks.take(TaskKind)
    assert third is not None
    assert third.kind is TaskKind.COMMIT_UPLOAD


def test_ids_that_could_not_be_forgotten_do_not_refuse_the_part_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin(lab)
    send(lab, upload.name, 0, ONE)

    def full(*_: object) -> None:
        raise Exhausted("no space is left")

    with monkeypatch.context() as patch:
        patch.setattr("appliance.control.services.data.upload_parts.UploadParts.record", full)
        patch.setattr("appliance.control.store.document_ids.DocumentIds.forget", full)
        with pytest.raises(Exhausted):
            send(lab, upload.name, 1, TWO)
    send(lab, upload.name, 1, TWO)
