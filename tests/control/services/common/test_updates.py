"""What an update may change, and the state that its caller has seen."""

from __future__ import annotations

import pytest

from appliance.api.projects.v1.project_service_pb2 import UpdateProjectRequest
from appliance.control.services.common.updates import changed_fields, check_etag, etag_of
from appliance.core.errors import Conflict, InvalidInput

CAN = ("description", "allow_downloads")


def request(*paths: str) -> UpdateProjectRequest:
    return UpdateProjectRequest(update_mask={"paths": paths})


def test_a_mask_names_what_changes() -> None:
    assert changed_fields(request("description"), CAN) == {"description"}
    assert changed_fields(request(*CAN, "description"), CAN) == set(CAN)


@pytest.mark.parametrize("paths", [(), ("*",), ("name",), ("description", "a\x1b[31mb"), ("",)])
def test_a_mask_that_names_nothing_or_too_much_is_refused(paths: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput) as refused:
        changed_fields(request(*paths), CAN)
    assert "description, allow_downloads" in refused.value.fields["update_mask"]
    assert "\x1b" not in refused.value.message


def test_an_etag_is_of_one_state() -> None:
    assert etag_of("a", True) == etag_of("a", True)
    assert len({etag_of("a", True), etag_of("a", False), etag_of("a", 1), etag_of("aTrue")}) == 4


def test_what_has_changed_since_it_was_read_is_not_changed() -> None:
    check_etag("", "now", "projects/p")
    check_etag("now", "now", "projects/p")
    with pytest.raises(Conflict, match="read it again"):
        check_etag("before", "now", "projects/p")
