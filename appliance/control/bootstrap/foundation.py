"""What every part of the control plane is built on: the open data directory, and people's proofs.

Rule kept here: everything is made once, and given on as arguments.

Called by the composition root; `appliance.control.bootstrap.parts` and
`appliance.control.bootstrap.work_parts` build on it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from appliance.control.audit.system import SystemRecords
from appliance.control.auth.challenges import Challenges
from appliance.control.auth.credentials import Credentials
from appliance.control.auth.hasher import Hasher
from appliance.control.auth.log_in import LogIn
from appliance.control.auth.passwords import Passwords
from appliance.control.auth.policy import PolicyStore
from appliance.control.auth.roles import Roles
from appliance.control.auth.sessions import Sessions
from appliance.control.auth.totp import Totp
from appliance.control.bootstrap.opening import Opened
from appliance.control.bootstrap.own_certificate import OwnCertificate
from appliance.control.config import ControlConfig
from appliance.control.events import Events
from appliance.control.services.common.change import Changes
from appliance.control.services.common.keys import Keys
from appliance.control.services.fleet.certificates import Certificates
from appliance.control.services.fleet.expirations import Expirations
from appliance.control.services.fleet.recovery import Recovery

Clock = Callable[[], datetime]


class Foundation:
    """What most services need.

    Args:
        opened: the open data directory.
        settings: the configuration.
        clock: the time, aware.
    """

    def __init__(self, opened: Opened, settings: ControlConfig, clock: Clock) -> None:
        self.opened = opened
        self.settings = settings
        self.clock = clock
        self.database = opened.database
        self.keyring = opened.keyring
        self.records = SystemRecords(opened.log)
        self.events = Events()
        self.changes = Changes(self.database, clock)
        self.policies = PolicyStore(self.database, Roles.load().with_site(settings.roles))
        self.keys = Keys(self.keyring)
        self.certificates = Certificates(
            self.database, self.keyring, self.policies, self.events, clock
        )
        self.challenges = Challenges(clock)
        self.recovery = Recovery(self.challenges, self.certificates, self.keyring.cluster_id)
        self.own_certificate = OwnCertificate(self.keyring.ca)
        self.expirations = Expirations(
            self.database, self.keyring.ca, lambda: self.own_certificate.end, clock
        )


class People:
    """Passwords, codes, sessions and tokens."""

    def __init__(self, base: Foundation) -> None:
        ring = base.keyring
        self.passwords = Passwords(ring.pepper)
        self.hasher = Hasher(self.passwords)
        self.totp = Totp(ring.field_key, ring.token_hmac)
        self.sessions = Sessions(base.database, ring.token_hmac, base.clock)
        self.log_in = LogIn(
            database=base.database,
            sessions=self.sessions,
            totp=self.totp,
            token_key=ring.token_hmac,
            clock=base.clock,
        )
        self.credentials = Credentials(
            database=base.database,
            sessions=self.sessions,
            token_key=ring.token_hmac,
            clock=base.clock,
        )
