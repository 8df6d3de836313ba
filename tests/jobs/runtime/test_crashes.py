"""Why a rank could not go on: categories and places of ours, never the text of an exception."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from torch import distributed

from appliance.core.errors import InvalidInput
from appliance.jobs.runtime import crashes
from appliance.jobs.runtime.crashes import Crash, Crashes
from appliance.jobs.runtime.leader import why
from appliance.jobs.runtime.orders import parse_spec

TEXT = "Ms Miller"
PEER = Crash("lost its connection to another rank", peer=True)
BUG = Crash("crashed with ValueError")


def caused(error: BaseException, cause: BaseException) -> BaseException:
    """As after `raise error from cause`."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (torch.OutOfMemoryError(TEXT), "RESOURCE_EXHAUSTED", "rank 3 ran out of memory on its"),
        (MemoryError(TEXT), "RESOURCE_EXHAUSTED", "rank 3 ran out of the node's memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1"),
            "RESOURCE_EXHAUSTED",
            "rank 3 ran out of the node's memory",
        ),
        (OSError(errno.ENOSPC, TEXT), "RESOURCE_EXHAUSTED", "rank 3 met a full disk"),
        (OSError(errno.EDQUOT, TEXT), "RESOURCE_EXHAUSTED", "rank 3 met a full disk"),
        (
            ModuleNotFoundError(TEXT, name="rensa.minhash"),
            "FAILED_PRECONDITION",
            "rensa cannot be imported on the node: install the extra node-cpu or node-gpu",
        ),
        (
            caused(RuntimeError(TEXT), OSError(errno.ENOSPC, TEXT)),
            "RESOURCE_EXHAUSTED",
            "rank 3 met a full disk",
        ),
    ],
)
def test_what_starting_again_would_not_help_is_final(
    error: BaseException, reason: str, words: str
) -> None:
    found = crashes.final(error, 3)
    assert found is not None
    assert found.reason == reason
    assert found.message.startswith(words)
    assert TEXT not in found.message


@pytest.mark.parametrize(
    "error",
    [
        ValueError("can't allocate memory"),
        OSError(errno.EIO, TEXT),
        RuntimeError(TEXT),
        # It was caught, and something else went wrong.
        caused(ValueError(TEXT), InvalidInput(TEXT)),
    ],
)
def test_whatever_else_goes_wrong_is_tried_again(error: BaseException) -> None:
    assert crashes.final(error, 0) is None


def test_a_crash_names_its_class_and_the_last_place_in_our_code() -> None:
    with pytest.raises(ValueError, match="length") as caught:
        parse_spec("train", TEXT)  # type: ignore[arg-type]
    words = crashes.crash(caught.value).words
    assert words.startswith("crashed with ")
    assert " in appliance.jobs.runtime.orders, line " in words
    assert TEXT not in words
    assert crashes.crash(KeyError(TEXT)) == Crash("crashed with KeyError")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:57496"),
        ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)),
        distributed.DistBackendError("NCCL error: remote process exited"),
        distributed.DistNetworkError("connection timed out"),
    ],
)
def test_a_rank_that_misses_another_says_that(error: BaseException) -> None:
    assert crashes.crash(error) == PEER


def test_the_first_crash_of_a_round_counts() -> None:
    board = Crashes(3)
    assert board.first(1) is None
    board.note(2, 1, BUG)
    board.note(0, 1, PEER)
    assert board.first(1) == (2, BUG)
    assert board.first(2) is None
    board.note(1, 2, Crash("é" * 2000))
    found = board.first(2)
    assert found is not None
    assert set(found[1].words) == {"?"}
    # A rank has a slot of its own, and what it said in an earlier round is over.
    assert board.first(1) == (2, BUG)


def test_the_board_is_shared_with_forked_ranks() -> None:
    board = Crashes(1)
    child = os.fork()
    if not child:
        board.note(0, 1, PEER)
        os._exit(0)
    os.waitpid(child, 0)
    assert board.first(1) == (0, PEER)


@pytest.mark.parametrize(
    ("killed", "crashed", "restarts", "reason", "words"),
    [
        ({5: 11}, (4, PEER), 1, "RANK_LOST", "rank 5 was killed by SIGSEGV, also after 1 restart"),
        ({}, (4, PEER), 0, "RANK_LOST", "rank 4 lost its connection to another rank"),
        ({}, (4, BUG), 3, "INTERNAL", "rank 4 crashed with ValueError, also after 3 restarts"),
        ({}, None, 3, "INTERNAL", "a rank ended without a word, also after 3 restarts"),
    ],
)
def test_the_reason_of_a_gang_is_its_cause(
    killed: dict[int, int],
    crashed: tuple[int, Crash] | None,
    restarts: int,
    reason: str,
    words: str,
) -> None:
    assert why(killed, crashed, restarts) == (reason, words)
