"""Which uploads are shown, and for how long."""

from __future__ import annotations

import pytest

from appliance.api.data.v1 import dataset_service_pb2
from appliance.api.data.v1 import upload_service_pb2 as rpc
from appliance.control.services.common import paging
from appliance.control.services.data import upload_tasks
from appliance.core.errors import FailedPrecondition, InvalidInput
from tests.fakes.lab import ALICE, PROJECT, Lab
from tests.fakes.parts import batch, begin, commit, send


@pytest.fixture(autouse=True)
def dataset(lab: Lab) -> None:
    request = dataset_service_pb2.CreateDatasetRequest(parent="projects/demo", dataset_id="raw")
    lab.datasets.create(ALICE, request)


def page(lab: Lab, token: str, size: int = 2) -> rpc.ListUploadsResponse:
    request = rpc.ListUploadsRequest(parent=f"projects/{PROJECT}", page_size=size, page_token=token)
    return lab.uploads.list(ALICE, request)


def test_pages_go_on_where_the_one_before_ended_also_when_that_has_gone(lab: Lab) -> None:
    names = []
    for number in range(5):
        lab.time.seconds += number % 2
        names.append(begin(lab).name)
    seen: list[str] = []
    token = ""
    while True:
        answer = page(lab, token)
        seen += [each.name for each in answer.uploads]
        token = answer.next_page_token
        if not token:
            break
        lab.uploads.abort(ALICE, rpc.AbortUploadRequest(name=seen[-1]))
    assert (len(seen), sorted(seen)) == (5, sorted(names))


def test_a_token_that_is_no_time_is_refused(lab: Lab) -> None:
    for wrong in ("yesterday", "2026-01-01T00:00:00"):
        with pytest.raises(InvalidInput, match="page_token"):
            page(lab, paging.token_of((wrong, "x")))


def test_what_has_ended_is_remembered_up_to_a_number(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_tasks, "MAX_REMEMBERED", 2)
    names = []
    for number in range(4):
        lab.time.seconds += 1
        names.append(begin(lab).name)
        content = batch((str(number), "x"))
        send(lab, names[-1], 0, content)
        commit(lab, names[-1], [content])
        lab.work.storage.do_all()
    open_one = begin(lab).name
    left = {each.name for each in page(lab, "", size=10).uploads}
    assert left == {*names[2:], open_one}


def test_an_upload_of_nothing_holds_no_document(lab: Lab) -> None:
    with pytest.raises(FailedPrecondition, match="holds no document"):
        commit(lab, begin(lab).name, [])
