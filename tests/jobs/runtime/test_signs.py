"""Signs of life: what a rank writes, its leader reads."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import distributed

from appliance.jobs.runtime import signs
from appliance.jobs.runtime.signs import RankState, Sign, Signs, in_collective


def test_what_a_rank_marks_is_read_and_forgotten_before_the_next_round() -> None:
    memory = Signs(2)
    one, other = memory.life(0), memory.life(1)
    one.mark("step 1")
    one.mark()
    other.mark("reads the checkpoint of step 8")
    other.mark("step 9")
    assert memory.read() == [Sign(marks=2, doing="step 1"), Sign(marks=2, doing="step 9")]
    one.end()
    assert memory.read()[0].state == RankState.DONE
    memory.clear()
    assert memory.read() == [Sign(), Sign()]


def test_a_text_is_ascii_and_has_an_end() -> None:
    memory = Signs(2)
    memory.life(0).mark("w\N{LATIN SMALL LETTER A WITH DIAERESIS}" + "x" * 1000)
    first, second = memory.read()
    assert first.doing[:3] == "w?x"
    assert set(first.doing[2:]) == {"x"}
    assert second == Sign()


def test_a_forked_process_writes_into_the_memory_of_its_parent() -> None:
    memory = Signs(1)
    child = multiprocessing.get_context("fork").Process(target=memory.life(0).mark, args=("works",))
    child.start()
    child.join(30)
    assert memory.read() == [Sign(marks=1, doing="works")]


def stand(file: str) -> Callable[[threading.Lock], None]:
    """A function of a file of this name that waits for a lock, which is no Python frame."""
    space: dict[str, Any] = {}
    exec(compile("def stand(lock):\n    lock.acquire()", file, "exec"), space)
    found: Callable[[threading.Lock], None] = space["stand"]
    return found


@pytest.mark.parametrize(
    ("file", "state"),
    [
        (f"{signs.DISTRIBUTED}distributed_c10d.py", RankState.WAITS),
        (f"{signs.TORCH}/nn/modules/linear.py", RankState.WORKS),
        ("/somewhere/else/torch/distributed.py", RankState.WORKS),
    ],
)
def test_a_rank_waits_while_it_stands_in_torch_distributed(
    monkeypatch: pytest.MonkeyPatch, file: str, state: RankState
) -> None:
    monkeypatch.setattr(signs, "BEAT_SECONDS", 0.001)
    memory, lock, standing = Signs(1), threading.Lock(), threading.Event()
    lock.acquire()

    def rank() -> None:
        life = memory.life(0)
        life.begin()
        standing.set()
        stand(file)(lock)
        life.end()

    thread = threading.Thread(target=rank)
    thread.start()
    standing.wait()
    # The first beats may have come before it stood there.
    beats = memory.read()[0].beats + 50
    while (found := memory.read()[0]).beats < beats:
        pass
    lock.release()
    thread.join()
    assert found.state == state
    assert memory.read()[0].state == RankState.DONE


def test_an_error_of_a_collective_is_told_from_any_other() -> None:
    with pytest.raises(ValueError, match="Default process group") as lost:
        distributed.all_reduce(torch.zeros(1))
    assert in_collective(lost.value.__traceback__)
    with pytest.raises(RuntimeError) as own:
        torch.zeros(2) @ torch.zeros(3)
    assert not in_collective(own.value.__traceback__)
    assert not in_collective(None)
