"""What a client says is too much is what the control plane takes, no more and no less."""

from __future__ import annotations

from appliance.client import parts, texts
from appliance.control.services.data import documents, upload_layout


def test_bounds_of_documents_are_those_of_the_control_plane() -> None:
    assert texts.MAX_DOCUMENT == documents.MAX_TEXT
    assert texts.MAX_ID == documents.MAX_ID
    assert texts.MAX_SOURCE == documents.MAX_SOURCE
    assert parts.PART_DOCUMENTS == upload_layout.PART_DOCUMENTS


def test_a_part_of_the_client_is_a_part_of_the_control_plane() -> None:
    assert parts.MESSAGE_BYTES <= parts.TEXT_PART_BYTES <= upload_layout.PART_BYTES
    # A document of its own part, with its id and source and what protobuf puts around them.
    text = 4 * (documents.MAX_ID + documents.MAX_SOURCE) + documents.MAX_TEXT
    assert text + 100 <= upload_layout.PART_BYTES
