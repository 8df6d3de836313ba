"""Send the parts of an upload: a few at a time, past connections that end, what is missing alone.

Rules kept here:
* which parts are there is asked of the server, page by page beside the parts as they are made; so
  memory does not grow with the upload, and nothing has to be remembered to go on with one;
* what may pass by itself (a control plane that starts again, a connection that is closed for its
  age, a rate) is waited for; a full disk, a refused part and a right that was taken away are not;
* a part that the server has with another content is never sent over it.

Called by the command. The token is the upload's own: a log-in elsewhere changes nothing.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from appliance.api.data.v1 import upload_pb2, upload_service_pb2_grpc
from appliance.api.data.v1 import upload_service_pb2 as rpc
from appliance.client.connection import Connection
from appliance.client.parts import OutgoingPart
from appliance.core.errors import (
    PROGRESS,
    ApplianceError,
    Conflict,
    Exhausted,
    FailedPrecondition,
    InvalidInput,
    Unauthenticated,
    Unavailable,
    Untrusted,
)
from appliance.core.waiting import Backoff

T = TypeVar("T")
IN_FLIGHT = 4
"""Parts that are sent at a time."""
PART_SECONDS = 600.0
"""For one part, at whatever speed; a dead connection is noticed within seconds."""
PATIENCE = 120.0
"""Seconds for which a control plane that cannot be reached is asked again."""
PAGE = 1000
FIRST_PAUSE, MAX_PAUSE = 0.2, 5.0
LOOK_FIRST, LOOK_LAST = 0.05, 2.0
"""Seconds between two looks at a commit."""

_OTHER = (
    "another command goes on with this upload, and this one has stopped: let that one end, or stop "
    "it and repeat this one"
)


class UploadFailed(InvalidInput):
    """What was sent cannot become a version, and is gone."""


class UploadCalls:
    """Calls about one upload, with its own token.

    Args:
        connect: a connection with a new token for the upload; asked again when one was refused.
        say: told once when it has to wait, and why, whichever thread does.
        patience: seconds for which it waits.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        say: Callable[[str], None],
        *,
        patience: float = PATIENCE,
    ) -> None:
        self._connect = connect
        self._say = say
        self._patience = patience
        self._over = threading.Event()
        self.sent = 0
        """Parts that were taken in."""
        self._waits_for = ""
        self._lock = threading.Lock()
        self._connection = connect()

    def ask(self, short: str, request: Any) -> Any:
        """One request, one response."""
        return self._repeat(
            lambda connection: connection.call(getattr(_stub(connection), short), request)
        )

    def send(self, name: str, part: OutgoingPart) -> None:
        """One part."""

        def messages() -> Iterator[rpc.UploadPartRequest]:
            pieces = iter(part.pieces())
            yield rpc.UploadPartRequest(
                name=name, number=part.number, sha256=part.digest.hex(), data=next(pieces, b"")
            )
            for piece in pieces:
                yield rpc.UploadPartRequest(data=piece)

        self._repeat(
            lambda connection: connection.upload(
                _stub(connection).UploadPart, messages(), timeout=PART_SECONDS
            )
        )
        with self._lock:
            self.sent += 1

    def wait(self, seconds: float) -> None:
        """Wait, not longer than until the end."""
        self._over.wait(seconds)

    def tell(self, what: str) -> None:
        """Say what is waited for."""
        self._say(what)

    def close(self) -> None:
        """End every call, also those that wait."""
        self._over.set()
        self._connection.close()

    def _repeat(self, work: Callable[[Connection], T]) -> T:
        renewed, waited, since = False, False, time.monotonic()
        backoff = Backoff(FIRST_PAUSE, MAX_PAUSE)
        while True:
            connection = self._connection
            try:
                done = work(connection)
            except Unauthenticated:
                # Twice, although a session of the same person makes new tokens.
                if renewed:
                    raise Conflict(_OTHER) from None
                renewed = True
                self._renew(connection)
            except (Unavailable, Exhausted) as error:
                pause = _pause(error, backoff)
                if PROGRESS in error.metadata:
                    since = time.monotonic()
                if self._over.is_set() or time.monotonic() - since + pause > self._patience:
                    raise
                if not waited:
                    self._say_once(error.message)
                waited = True
                if self._over.wait(pause):
                    raise
            else:
                self._waits_for = ""
                return done

    def _say_once(self, why: str) -> None:
        """Say what is waited for, unless another thread has said it."""
        with self._lock:
            said, self._waits_for = self._waits_for == why, why
        if not said:
            self._say(f"{why}; trying again")

    def _renew(self, refused: Connection) -> None:
        """A new token, unless another thread has one already."""
        with self._lock:
            if self._connection is refused:
                self._connection = self._connect()


def _stub(connection: Connection) -> Any:
    return connection.stub(upload_service_pb2_grpc.UploadServiceStub)


def _pause(error: ApplianceError, backoff: Backoff) -> float:
    """Seconds to wait before the same again; endless when waiting does not help."""
    if isinstance(error, Untrusted):
        return math.inf
    if isinstance(error, Exhausted):
        return math.inf if error.retry_after is None else error.retry_after
    return backoff.failed()


def complete(
    calls: UploadCalls,
    upload: upload_pb2.Upload,
    parts: Iterable[OutgoingPart],
    advance: Callable[[int], None] = lambda _: None,
) -> str:
    """Send what is missing of an upload, commit it, and wait; the name of its version.

    Args:
        calls: about it.
        upload: as it is.
        parts: all of it, in order.
        advance: called with the bytes of each part that is there.

    Raises:
        FailedPrecondition: what is there is not what would be sent.
        UploadFailed: what was sent cannot become a version.
    """
    digest, count = hashlib.sha256(), 0
    for part in _sent(calls, upload, parts, advance):
        digest.update(part.digest)
        count += 1
    request = rpc.CommitUploadRequest(name=upload.name, parts=count, sha256=digest.hexdigest())
    return _version(calls, calls.ask("CommitUpload", request))


def _sent(
    calls: UploadCalls,
    upload: upload_pb2.Upload,
    parts: Iterable[OutgoingPart],
    advance: Callable[[int], None],
) -> Iterator[OutgoingPart]:
    """Each part, handed to a thread when it is not there; all are there at the end."""
    if upload.state not in {upload.STATE_OPEN, upload.STATE_UNSPECIFIED}:
        yield from parts  # What it became is compared by its digest.
        return
    there = _there(calls, upload)
    known = next(there, None)
    running: dict[Future[None], int] = {}
    pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="part")
    try:
        for part in parts:
            if known is not None and known.number == part.number:
                _check_same(upload, part, known)
                known = next(there, None)
                advance(part.size)
            else:
                _collect(running, advance, most=IN_FLIGHT - 1)
                running[pool.submit(calls.send, upload.name, part)] = part.size
            # Its content is not held beyond that.
            yield OutgoingPart(part.number, part.digest, part.size, tuple)
        _collect(running, advance, most=0)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _collect(running: dict[Future[None], int], advance: Callable[[int], None], most: int) -> None:
    """Wait until no more than `most` parts are under way. Raises what one of them raised."""
    while len(running) > most:
        for done in wait(running, return_when=FIRST_COMPLETED).done:
            advance(running.pop(done))
            done.result()


def _there(calls: UploadCalls, upload: upload_pb2.Upload) -> Iterator[upload_pb2.UploadedPart]:
    """The parts that are there, by number."""
    request = rpc.ListUploadPartsRequest(parent=upload.name, page_size=PAGE)
    while upload.parts:
        answer = calls.ask("ListUploadParts", request)
        yield from answer.parts
        if not answer.next_page_token:
            return
        request = rpc.ListUploadPartsRequest(
            parent=upload.name, page_size=PAGE, page_token=answer.next_page_token
        )


def _check_same(
    upload: upload_pb2.Upload, part: OutgoingPart, known: upload_pb2.UploadedPart
) -> None:
    if known.sha256 != part.digest.hex():
        raise FailedPrecondition(
            f"part {part.number} of {upload.name} is there with another content: files have "
            "changed since it was sent. Nothing was lost: put them back and go on, or begin anew "
            "without --resume",
            part=part.number,
        )


def _version(calls: UploadCalls, upload: upload_pb2.Upload) -> str:
    """The name of the version, once it is there."""
    pause, said = LOOK_FIRST, ""
    while upload.state == upload.STATE_COMMITTING:
        if upload.message not in {"", said}:
            said = upload.message
            calls.tell(f"everything is there, and becomes a version as soon as that works: {said}")
        calls.wait(pause)
        pause = min(pause * 1.5, LOOK_LAST)
        upload = calls.ask("GetUpload", rpc.GetUploadRequest(name=upload.name))
    if upload.state != upload.STATE_COMMITTED:
        raise UploadFailed(upload.message)
    return upload.version
