"""A join token made on the control plane's own server, by whoever may read its keys.

`appliance node create-join-token` is the way for people: it needs a session and a fresh second
factor. This one is for automation that sets the servers up, when nobody has logged in yet.

Rules kept here:
* the control plane must not run: its lock is taken, so there is one writer of state and audit log;
* intent and result are in the audit log, under the method `join-token` and no principal: the
  operating system, not the appliance, says who may run it;
* the token is stored as a keyed digest, like every other.

Called by `python -m appliance.control --config control.toml join-token`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from appliance.control.audit.record import Entry
from appliance.control.auth import join_tokens
from appliance.control.auth.join_tokens import NewJoinToken
from appliance.control.config import ControlConfig
from appliance.control.opening import offline, open_data
from appliance.core import names

METHOD = "join-token"
LIFETIME = timedelta(hours=1)
"""A playbook may install for long between making a token and starting the agent."""


@dataclass(frozen=True)
class Invitation:
    """What a server needs to join: the token, and the fingerprint of the authority."""

    token: NewJoinToken
    ca_fingerprint: str


def make(settings: ControlConfig, node: str, clock: Callable[[], datetime]) -> Invitation:
    """Make a token with which one server may join as `node`, once, within an hour.

    Raises:
        InvalidInput: `node` cannot name a node.
        FailedPrecondition: the control plane runs, or its data directory is not in order.
        AuditUnavailable: it cannot be recorded; then there is no token.
    """
    name = names.node(names.check_id(node, "node"))
    opened = open_data(settings, clock)
    try:
        log, keyring = opened.log, opened.keyring
        log.append(Entry("intent", method=METHOD, resource=name, details=offline())).result()
        with opened.database.write() as transaction:
            token = join_tokens.create(
                transaction, keyring.token_hmac, node, "", clock(), lifetime=LIFETIME
            )
        made = offline() | {
            "made": {"token_id": token.id, "expire_time": token.expire_time.isoformat()}
        }
        log.append(
            Entry("result", method=METHOD, resource=name, outcome="OK", details=made)
        ).result()
        return Invitation(token, keyring.ca.fingerprint())
    finally:
        opened.close()
