"""A tokenizer that arrives in parts: whole and as it was sent, or not at all.

Rules kept here:
* what is announced is within bounds before anything is kept, and no more is kept than announced;
* each part brings something: bytes, or the digest at the end;
* it counts when all bytes are there and their digest is the one at the end.

The attack, or the accident: a stream that ends early, has a part twice or never ends. Pure. Called
by `appliance.gateway.fetching`.
"""

from __future__ import annotations

import hashlib

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import Unavailable
from appliance.core.tokenizers import MAX_TEMPLATE, MAX_TOKENIZER


class Received:
    """What has arrived so far.

    Args:
        first: the first part.

    Raises Unavailable when it is larger than a gateway takes.
    """

    def __init__(self, first: routing_service_pb2.ServedTokenizerPart) -> None:
        sizes = first.tokenizer_json_size, first.chat_template_size
        if not 0 <= sizes[0] <= MAX_TOKENIZER or not 0 <= sizes[1] <= MAX_TEMPLATE:
            raise Unavailable(
                f"the model's tokenizer has {sizes[0]} bytes and its chat template {sizes[1]}, more"
                f" than the {MAX_TOKENIZER} and {MAX_TEMPLATE} that a gateway takes: import"
                " the model again with smaller ones"
            )
        self.content = first.content
        self._tokenizer = first.tokenizer
        self._json_size, self._size = sizes[0], sum(sizes)
        self._data = bytearray()
        self._hash = hashlib.sha256()
        self._digest = b""

    def add(self, part: routing_service_pb2.ServedTokenizerPart) -> None:
        """Take in a further part.

        Raises Unavailable when there is more than was announced, or nothing in it.
        """
        if not part.data and not part.digest:
            raise _broken("has a part without anything in it")
        if len(self._data) + len(part.data) > self._size or (self._digest and part.data):
            raise _broken("has more bytes than it said")
        self._data += part.data
        # Piece by piece: all at once would stop the answers for a third of a second.
        self._hash.update(part.data)
        self._digest = self._digest or part.digest

    def finished(self) -> routing_service_pb2.ServedTokenizer:
        """The tokenizer, at the end of the stream. Raises Unavailable when it is not whole."""
        if len(self._data) != self._size:
            raise _broken("ended early")
        if self._hash.digest() != self._digest:
            raise _broken("is not what the control plane sent")
        try:
            self._tokenizer.chat_template = bytes(self._data[self._json_size :]).decode()
        except UnicodeDecodeError as error:
            raise _broken("has a chat template that is no text") from error
        self._tokenizer.tokenizer_json = bytes(self._data[: self._json_size])
        self._data = bytearray()
        return self._tokenizer


def _broken(how: str) -> Unavailable:
    return Unavailable(
        f"the model's tokenizer {how} on its way: repeat the request", retry_after=2.0
    )
