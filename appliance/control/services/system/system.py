"""What this appliance is, and which RPC needs what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from appliance.api.system.v1 import system_service_pb2 as rpc
from appliance.control.auth.policy import PolicyStore
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.resources import timestamp
from appliance.control.services.fleet.expirations import MOST, Expirations
from appliance.wire.rules import AccessRule


@dataclass(frozen=True)
class Facts:
    """What does not change while the control plane runs."""

    version: str
    cluster_id: str
    gateway_address: str
    openai_base_url: str


class System:
    """Shows the appliance. `rules` are those of every RPC of the control plane."""

    def __init__(
        self,
        facts: Facts,
        rules: Mapping[str, AccessRule],
        policies: PolicyStore,
        expirations: Expirations,
    ) -> None:
        self._facts = facts
        self._expirations = expirations
        self._rules = rules
        self._policies = policies

    def get(self, caller: Caller) -> rpc.GetSystemResponse:
        """Version, cluster, policy and where the gateway is."""
        del caller
        return rpc.GetSystemResponse(
            version=self._facts.version,
            cluster_id=self._facts.cluster_id,
            policy_version=self._policies.current().version,
            gateway_address=self._facts.gateway_address,
            openai_base_url=self._facts.openai_base_url,
        )

    def list_expirations(self, caller: Caller) -> rpc.ListExpirationsResponse:
        """What ends and somebody must see to, soonest first."""
        del caller
        return rpc.ListExpirationsResponse(
            expirations=[
                rpc.Expiration(what=each.what, expire_time=timestamp(each.time), advice=each.advice)
                for each in self._expirations.due()[:MOST]
            ]
        )

    def list_permissions(self, caller: Caller) -> rpc.ListPermissionsResponse:
        """Every RPC with what it needs."""
        del caller
        return rpc.ListPermissionsResponse(
            methods=[
                rpc.MethodPermission(
                    method=method,
                    permission=rule.permission,
                    fresh_mfa=rule.fresh_mfa,
                    anonymous=rule.anonymous,
                    summary=rule.summary,
                )
                for method, rule in sorted(self._rules.items())
            ]
        )
