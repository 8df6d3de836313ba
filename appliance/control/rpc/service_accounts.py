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
from appliance.control.services.access.account_tokens import AccountTokens
from appliance.control.services.access.service_accounts import ServiceAccounts

Context = grpc.aio.ServicerContext[Any, Any]


class ServiceAccountRpc(Servicer, ServiceAccountServiceServicer):
    """Translates."""

    def __init__(
        self, service: ServiceAccounts, tokens: AccountTokens, pool: CallPool, events: Events
    ) -> None:
        super().__init__(pool, events)
        self._service = service
        self._tokens = tokens

    async def GetServiceAccount(
        self, request: rpc.GetServiceAccountRequest, context: Context
    ) -> service_account_pb2.ServiceAccount:
        """Returns one service account."""
        return await self._run(self._service.get, self.caller, request)

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

    async def UpdateServiceAccount(
        self, request: rpc.UpdateServiceAccountRequest, context: Context
    ) -> service_account_pb2.ServiceAccount:
        """Describes, locks or unlocks a service account."""
        return await self._run(self._service.update, self.caller, request)

    async def DeleteServiceAccount(
        self, request: rpc.DeleteServiceAccountRequest, context: Context
    ) -> rpc.DeleteServiceAccountResponse:
        """Deletes a service account."""
        return await self._run(self._service.delete, self.caller, request)

    async def ListTokens(
        self, request: rpc.ListTokensRequest, context: Context
    ) -> rpc.ListTokensResponse:
        """Returns one page of live tokens."""
        return await self._run(self._tokens.list, self.caller, request)

    async def RotateToken(
        self, request: rpc.RotateTokenRequest, context: Context
    ) -> rpc.RotateTokenResponse:
        """Makes a token in the place of another one."""
        return await self._run(self._tokens.rotate, self.caller, request)

    async def CreateToken(
        self, request: rpc.CreateTokenRequest, context: Context
    ) -> rpc.CreateTokenResponse:
        """Makes a token and shows it once."""
        return await self._run(self._tokens.create, self.caller, request)

    async def RevokeToken(
        self, request: rpc.RevokeTokenRequest, context: Context
    ) -> rpc.RevokeTokenResponse:
        """Ends a token."""
        return await self._run(self._tokens.revoke, self.caller, request)
