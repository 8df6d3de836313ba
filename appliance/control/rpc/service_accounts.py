"""ServiceAccountService: see `appliance.control.services.access.service_accounts`."""

from __future__ import annotations

from typing import Any

import grpc.aio

from appliance.api.access.v1 import service_account_pb2
from appliance.api.access.v1 import service_account_service_pb2 as rpc
from appliance.api.access.v1.service_account_service_pb2_grpc import ServiceAccountServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.access.service_accounts import ServiceAccounts

Context = grpc.aio.ServicerContext[Any, Any]


class ServiceAccountRpc(Servicer, ServiceAccountServiceServicer):
    """Translates."""

    def __init__(self, service: ServiceAccounts, pool: CallPool, events: Events) -> None:
        super().__init__(pool, events)
        self._service = service

    async def GetServiceAccount(
        self, request: rpc.GetServiceAccountRequest, context: Context
    ) -> service_account_pb2.ServiceAccount:
        """Returns one service account."""
        return await self._run(self._service.get, self.caller, request.name)

    async def ListServiceAccounts(
        self, request: rpc.ListServiceAccountsRequest, context: Context
    ) -> rpc.ListServiceAccountsResponse:
        """Returns one page of service accounts."""
        return await self._run(self._service.list, self.caller, request)

    async def CreateServiceAccount(
        self, request: rpc.CreateServiceAccountRequest, context: Context
    ) -> service_account_pb2.ServiceAccount:
        """Creates a service account."""
        return await self._run(self._service.create, self.caller, request)

    async def CreateToken(
        self, request: rpc.CreateTokenRequest, context: Context
    ) -> rpc.CreateTokenResponse:
        """Makes a token and shows it once."""
        return await self._run(self._service.create_token, self.caller, request)

    async def RevokeToken(
        self, request: rpc.RevokeTokenRequest, context: Context
    ) -> rpc.RevokeTokenResponse:
        """Ends a token."""
        return await self._run(self._service.revoke_token, self.caller, request)
