"""A tokenizer that arrives in parts: whole, or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import Unavailable
from appliance.core.tokenizers import MAX_TEMPLATE, MAX_TOKENIZER
from appliance.gateway.received import Received

Part = routing_service_pb2.ServedTokenizerPart


def parts(tokenizer: bytes = b"{tokenizer}", template: bytes = b"{{ m }}") -> list[Part]:
    whole = tokenizer + template
    return [
        Part(
            tokenizer=routing_service_pb2.ServedTokenizer(bos_token="<s>"),
            content="c",
            tokenizer_json_size=len(tokenizer),
            chat_template_size=len(template),
        ),
        *(Part(data=whole[start : start + 4]) for start in range(0, len(whole), 4)),
        Part(digest=hashlib.sha256(whole).digest()),
    ]


def receive(given: list[Part]) -> routing_service_pb2.ServedTokenizer:
    first, *others = given
    received = Received(first)
    for part in others:
        received.add(part)
    return received.finished()


@pytest.mark.parametrize("template", ["", "{{ m }}", "ü" * 7])
def test_both_texts_are_put_together(template: str) -> None:
    found = receive(parts(template=template.encode()))
    assert (found.tokenizer_json, found.chat_template) == (b"{tokenizer}", template)
    assert found.bos_token == "<s>"


@pytest.mark.attack
@pytest.mark.parametrize(
    "change",
    [
        lambda given: given[:-1],
        lambda given: given[:1],
        lambda given: [*given[:2], *given[3:]],
        lambda given: [*given[:2], given[1], *given[2:]],
        lambda given: [given[0], given[2], given[1], *given[3:]],
        lambda given: [*given, Part(data=b"x")],
        lambda given: [*given[:-1], Part(digest=bytes(32))],
        lambda given: [*given[:-1], Part(), given[-1]],
    ],
    ids=["no end", "nothing", "one lost", "one twice", "out of order", "more", "another", "empty"],
)
def test_what_is_not_whole_is_not_used(change: Callable[[list[Part]], list[Part]]) -> None:
    with pytest.raises(Unavailable, match="repeat the request"):
        receive(change(parts()))


@pytest.mark.attack
@pytest.mark.parametrize("sizes", [(MAX_TOKENIZER + 1, 0), (0, MAX_TEMPLATE + 1), (-1, 5), (5, -1)])
def test_what_is_announced_too_large_is_not_begun(sizes: tuple[int, int]) -> None:
    with pytest.raises(Unavailable, match="more than the"):
        Received(Part(tokenizer_json_size=sizes[0], chat_template_size=sizes[1]))


@pytest.mark.attack
def test_no_more_is_kept_than_was_announced() -> None:
    received = Received(Part(tokenizer_json_size=10))
    received.add(Part(data=b"1234567890"))
    for _ in range(1000):
        with pytest.raises(Unavailable, match="more bytes than it said"):
            received.add(Part(data=b"12345"))
    assert len(received._data) == 10
