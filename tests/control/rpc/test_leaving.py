"""Who leaves in the middle of a log-in."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from appliance.api.auth.v1 import auth_service_pb2 as rpc
from appliance.control.auth.log_in import PendingLogIn
from appliance.control.events import Events
from appliance.control.rpc.auth import AuthRpc
from appliance.control.services.common.caller import Caller, set_current_caller
from appliance.core.identity import ANONYMOUS


class Service:
    """Counts a try slowly, and says what was given back."""

    def __init__(self) -> None:
        self.began, self.goes_on = threading.Event(), threading.Event()
        self.released: list[PendingLogIn] = []

    def begin_login(self, _caller: Caller, request: rpc.LoginRequest) -> PendingLogIn:
        self.began.set()
        assert self.goes_on.wait(30)
        return PendingLogIn(request.user, None, "user:alice")

    def release(self, begun: PendingLogIn) -> None:
        self.released.append(begun)


class NoTurn:
    """A hasher that nobody may reach."""

    async def verify(self, *_: object, **__: object) -> bool:
        raise AssertionError("the password of one who left took a turn")


@pytest.mark.attack
async def test_who_leaves_while_the_try_is_counted_takes_no_turn_and_gets_it_back() -> None:
    service = Service()
    set_current_caller(Caller(principal=ANONYMOUS, request_id="1", source="ipv4:10.0.0.1:5"))
    with ThreadPoolExecutor(1) as pool:
        served = AuthRpc(cast("Any", service), cast("Any", NoTurn()), pool, Events())
        call = asyncio.create_task(
            served.Login(rpc.LoginRequest(user="alice", password="x"), cast("Any", None))
        )
        assert await asyncio.to_thread(service.began.wait, 30)
        call.cancel()
        await asyncio.sleep(0)
        service.goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert [begun.owner for begun in service.released] == ["alice"]
