"""Frames of HTTP/2 by hand, against the examples of the RFCs."""

from __future__ import annotations

from bench.flood import frames


def test_numbers_have_a_prefix_of_seven_bits() -> None:
    # RFC 7541, C.1 with a prefix of seven bits.
    assert frames.encoded_number(10) == b"\x0a"
    assert frames.encoded_number(126) == b"\x7e"
    assert frames.encoded_number(127) == b"\x7f\x00"
    assert frames.encoded_number(1337) == b"\x7f\xba\x09"


def test_a_field_is_a_literal_that_nobody_keeps() -> None:
    # RFC 7541, C.2.2 but with a name in full.
    assert frames.fields_of([(":path", "/sample/path")]) == b"\x00\x05:path\x0c/sample/path"


def test_a_frame_is_read_as_it_was_made_however_it_arrives() -> None:
    made = frames.frame(frames.PING, 0, 0, b"12345678") + frames.reset(7)
    reader, found = frames.Reader(), []
    for byte in made:
        found += reader.feed(bytes((byte,)))
    assert found == [
        (frames.PING, 0, 0, b"12345678"),
        (frames.RST_STREAM, 0, 7, b"\x00\x00\x00\x08"),
    ]


def test_a_head_that_is_too_long_for_a_frame_goes_on() -> None:
    data = frames.call(1, "/a", ("x", "y" * 40_000), end=True)
    found = list(frames.Reader().feed(data))
    assert [kind for kind, *_ in found] == [
        frames.HEADERS,
        frames.CONTINUATION,
        frames.CONTINUATION,
    ]
    assert [flags for _, flags, *_ in found] == [frames.END_STREAM, 0, frames.END_HEADERS]


def test_a_message_says_whether_it_is_compressed_and_how_long() -> None:
    ((kind, flags, stream, payload),) = frames.Reader().feed(
        frames.message(3, b"abc", compressed=True)
    )
    assert (kind, flags, stream, payload) == (0, frames.END_STREAM, 3, b"\x01\x00\x00\x00\x03abc")
