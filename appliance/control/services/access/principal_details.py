"""What a person or an application holds, and what it made that goes on.

Rules kept here:
* what a principal made is not its own: a token of an application, a job or an endpoint goes on when
  its maker is locked or deleted. So it is listed, each with the command that ends it;
* nobody is shown here what he may not list: it is counted, and not named;
* a name may have been another person's before. What is older than the principal was made by that
  one, and is not listed.

Called by the services of people and of applications. The attack: a token that a person made before
they left, and that nobody thinks of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, func, literal, select

from appliance.api.access.v1 import principal_details_pb2 as pb
from appliance.control.auth import scopes, sessions
from appliance.control.auth.policy import Policy
from appliance.control.auth.scopes import PLATFORM
from appliance.control.services.access.session_resources import session_resource
from appliance.control.services.common.resources import timestamp
from appliance.control.store import tables
from appliance.control.store.database import Reading
from appliance.core import names
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.jobs import TERMINAL

MAX_SHOWN = 100
"""Of one kind."""


@dataclass(frozen=True)
class _Kind:
    """One kind of thing that goes on.

    Attributes:
        permission: to list it, where it is.
        wanted: selects `domain`, `create_time`, `expire_time` and what `name` and `end` need.
        name: what it is called.
        end: the command that ends it.
    """

    permission: str
    wanted: Select[Any]
    name: Callable[[Row[Any]], str]
    end: Callable[[Row[Any]], str]


def details_of(
    state: Reading,
    policy: Policy,
    caller: Principal,
    principal: Principal,
    now: datetime,
) -> pb.PrincipalDetails:
    """Everything of a principal that `caller` may see.

    Args:
        state: to read.
        policy: in force.
        caller: who asks.
        principal: whose it is; it is there.
        now: aware time.
    """
    held = policy.roles_of(principal)
    seen = [each for each in held if policy.allowed(caller, each[1], "bindings.list")]
    details = pb.PrincipalDetails(
        roles=[f"{role}@{scopes.name(domain)}" for role, domain in seen],
        not_shown=len(held) - len(seen),
    )
    if principal.kind is PrincipalKind.USER:
        mine = tables.session.select().where(tables.session.c.user == principal.id)
        rows = state.all(mine.order_by(tables.session.c.create_time.desc(), tables.session.c.id))
        live = (row for row in rows if sessions.is_live(row, now))
        details.sessions.extend(map(session_resource, live))
    for kind in _kinds(principal, _since(state, principal), now):
        found = kind.wanted.subquery()
        counted = select(found.c.domain, func.count().label("rows")).group_by(found.c.domain)
        counts = {row.domain: int(row.rows) for row in state.all(counted)}
        seen_in = [each for each in counts if policy.allowed(caller, each, kind.permission)]
        shown = select(found).where(found.c.domain.in_(seen_in)).order_by(found.c.create_time)
        rows = state.all(shown.limit(MAX_SHOWN))
        details.creations.extend(_creation(kind, row) for row in rows)
        details.not_shown += sum(counts.values()) - len(rows)
    return details


def _since(state: Reading, principal: Principal) -> datetime:
    """When a principal was created."""
    person = principal.kind is PrincipalKind.USER
    table = tables.user if person else tables.service_account
    made: datetime = state.value(select(table.c.create_time).where(table.c.id == principal.id))
    return made


def _creation(kind: _Kind, row: Row[Any]) -> pb.Creation:
    return pb.Creation(
        what=kind.name(row),
        end_command=f"appliance {kind.end(row)}",
        create_time=timestamp(row.create_time),
        expire_time=timestamp(row.expire_time),
    )


def _kinds(principal: Principal, since: datetime, now: datetime) -> Iterator[_Kind]:
    """What a principal can have made, from what opens most to what opens least."""
    yield _tokens(principal, since, now)
    yield _join_tokens(principal, since, now)
    yield _upload_tokens(principal, now)
    job, endpoint = tables.job.c, tables.endpoint.c
    yield _Kind(
        "jobs.list",
        select(job.project.label("domain"), job.id, job.create_time, _never()).where(
            job.creator == principal.name,
            job.create_time >= since,
            job.state.not_in([*TERMINAL]),
        ),
        lambda row: names.job(row.domain, row.id),
        lambda row: f"job cancel {names.job(row.domain, row.id)}",
    )
    yield _Kind(
        "endpoints.list",
        select(endpoint.project.label("domain"), endpoint.id, endpoint.create_time, _never()).where(
            endpoint.creator == principal.name, endpoint.create_time >= since
        ),
        lambda row: names.endpoint(row.domain, row.id),
        lambda row: f"endpoint delete {names.endpoint(row.domain, row.id)}",
    )


def _tokens(principal: Principal, since: datetime, now: datetime) -> _Kind:
    token, account = tables.token.c, tables.service_account.c
    return _Kind(
        "serviceAccounts.list",
        select(
            account.project.label("domain"),
            token.service_account,
            token.id,
            token.create_time,
            token.expire_time,
        )
        .join_from(tables.token, tables.service_account, token.service_account == account.id)
        .where(
            token.creator == principal.name, token.create_time >= since, token.expire_time > now
        ),
        lambda row: f"{names.service_account(row.service_account)} token {row.id}",
        lambda row: (
            f"service-account revoke-token {names.service_account(row.service_account)} {row.id}"
        ),
    )


def _join_tokens(principal: Principal, since: datetime, now: datetime) -> _Kind:
    token = tables.join_token.c
    return _Kind(
        "nodes.listJoinTokens",
        select(
            literal(PLATFORM).label("domain"),
            token.kind,
            token.machine,
            token.id,
            token.create_time,
            token.expire_time,
        ).where(
            token.creator == principal.name,
            token.create_time >= since,
            token.expire_time > now,
            token.used_time.is_(None),
        ),
        lambda row: f"{row.kind}s/{row.machine} join token {row.id}",
        lambda row: f"node revoke-join-token {row.id}",
    )


def _upload_tokens(principal: Principal, now: datetime) -> _Kind:
    upload = tables.upload.c
    person = principal.kind is PrincipalKind.USER
    return _Kind(
        "uploads.list",
        select(
            upload.project.label("domain"),
            upload.uid,
            upload.grant_session,
            upload.create_time,
            upload.expire_time,
        ).where(
            upload.principal == principal.subject,
            upload.grant_id.is_not(None),
            upload.expire_time > now,
        ),
        lambda row: f"{names.upload(row.domain, row.uid)} token",
        lambda row: (
            f"user end-sessions {principal.name}"
            if person
            else f"service-account revoke-token {principal.name} {row.grant_session}"
        ),
    )


def _never() -> Any:  # noqa: ANN401  # a column of SQLAlchemy
    """The end of what does not end by itself."""
    return literal(None, tables.token.c.expire_time.type).label("expire_time")
