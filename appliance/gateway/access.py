"""Who calls, and may they ask this endpoint: decided from a snapshot alone.

Rules kept here:
* identity comes from a bearer token whose keyed digest is in the snapshot, and from nothing else a
  caller sends;
* digests are compared in constant time; an unknown token costs the same work;
* an endpoint that does not exist and one that is not granted get the same answer.

The attack: a guessed, foreign or ended token; a header that names somebody else; probing for names
of endpoints. Pure. Called by `appliance.gateway.pipeline`, and again while an answer streams.
"""

from __future__ import annotations

from appliance.core.errors import NotFound, Unauthenticated
from appliance.core.names import shown
from appliance.crypto import tokens
from appliance.crypto.tokens import TokenKind
from appliance.gateway.snapshot import Route, RoutingSnapshot

_BEARER = "bearer "
_NOBODY = bytes(32)
INFER = "endpoints.infer"


def bearer(authorization: str | bytes | None) -> str:
    """The token in an `authorization` header. Raises Unauthenticated without one."""
    if not isinstance(authorization, str) or not authorization.lower().startswith(_BEARER):
        raise Unauthenticated(
            "send a bearer token: log in, or use a token of a service account as the API key"
        )
    return authorization[len(_BEARER) :].strip()


def identify(snapshot: RoutingSnapshot, token: str, now: float) -> tuple[str, str]:
    """Whose token it is (`users/alice`), and the token's id. Raises Unauthenticated.

    `now` is in seconds since 1970.
    """
    parsed = tokens.parse(token, TokenKind.SESSION, TokenKind.SERVICE)
    found = snapshot.credentials.get(parsed.id)
    right = tokens.matches(parsed, found.digest if found else _NOBODY, snapshot.token_key)
    if found is None or not right or now >= found.expires:
        raise tokens.refused()
    return found.principal, parsed.id


def recheck(
    snapshot: RoutingSnapshot, credential: str, principal: str, endpoint: str, now: float
) -> None:
    """Judge a running answer again by the id of its token. Raises like `identify` and `route`."""
    found = snapshot.credentials.get(credential)
    if found is None or found.principal != principal or now >= found.expires:
        raise tokens.refused()
    route(snapshot, principal, endpoint)


def route(snapshot: RoutingSnapshot, principal: str, endpoint: str) -> Route:
    """The route of an endpoint that the principal may ask. Raises NotFound for all others."""
    found = snapshot.routes.get(endpoint)
    if found is None or not snapshot.may(principal, found.project, INFER):
        raise NotFound(
            f"there is no endpoint {shown(endpoint)} that you may ask: check its name, "
            "or have somebody give you the right to ask it",
            endpoint=endpoint[:200],
        )
    return found


def allowed(snapshot: RoutingSnapshot, principal: str) -> list[str]:
    """Endpoints the principal may ask, sorted."""
    return sorted(
        endpoint
        for endpoint, route in snapshot.routes.items()
        if snapshot.may(principal, route.project, INFER)
    )
