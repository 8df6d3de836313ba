from __future__ import annotations

import asyncio
import threading

from appliance.control.events import Events


async def test_a_publish_from_another_thread_wakes_who_listens_and_nobody_else() -> None:
    events = Events()
    with events.watch("a", "b") as listening, events.watch("c") as other:
        thread = threading.Thread(target=events.publish, args=("b",))
        thread.start()
        assert await listening.wait(5.0) is True
        thread.join()
        assert await other.wait(0.0) is False


async def test_many_wake_ups_are_one_look() -> None:
    events = Events()
    with events.watch("a") as watch:
        events.publish("a")
        events.publish("a")
        await asyncio.sleep(0)
        assert [await watch.wait(1.0), await watch.wait(0.0)] == [True, False]


async def test_nothing_is_kept_for_watchers_that_left() -> None:
    events = Events()
    with events.watch("a"):
        pass
    events.publish("a")
    assert events._watches == {}


def test_a_watcher_whose_loop_has_ended_does_not_hurt_the_publisher() -> None:
    events = Events()

    async def leave() -> object:
        watch = events.watch("a")
        watch.__enter__()
        return watch

    kept = asyncio.run(leave())
    events.publish("a")
    assert kept is not None
