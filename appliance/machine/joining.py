"""How a server becomes a node or a gateway, and one again when it is no longer taken.

Rules kept here:
* nothing of this ends the process: what ends is started over and over. It waits for a join token
  in its file, and takes it up by itself;
* a certificate that has ended is replaced by proof of its key; a token is used where one is there:
  there is no identity, or the control plane refuses it;
* what is wrong is said with the command to type, at once and then less and less often.

Called by the composition roots and `keeping`.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from appliance.core.errors import (
    ApplianceError,
    Exhausted,
    FailedPrecondition,
    Unauthenticated,
    Unavailable,
)
from appliance.core.waiting import Backoff
from appliance.machine.identity import Identity, IdentityStore

LOOK_SECONDS = 0.5
"""How often a waiting process looks whether somebody has put a token there."""
FIRST_PAUSE = 0.5
MAX_PAUSE = 60.0

logger = logging.getLogger(__name__)


class Joining:
    """Gets a machine its identity.

    Args:
        store: keeps the identity, and exchanges a token for one.
        token_file: where somebody puts a join token.
        look: seconds between two looks at that file.
    """

    def __init__(
        self, store: IdentityStore, token_file: Path, *, look: float = LOOK_SECONDS
    ) -> None:
        self.store = store
        self._token_file = token_file
        self._look = look

    async def begin(self) -> Identity:
        """The identity of this machine; waits until there is one, whether it still holds or not.

        A token that somebody has brought goes first: the identity may be that of a backup.

        Raises FailedPrecondition when the authority is not the one that was announced: a token
        must not be sent to it.
        """
        backoff = Backoff(FIRST_PAUSE, MAX_PAUSE)
        while True:
            held, why = None, "this server has not joined"
            if self.store.exists():
                try:
                    held, why = self.store.load(), "a join token lies beside the identity"
                except FailedPrecondition as error:
                    why = str(error)
            if held is None:
                self.store.pinned_ca()
            if held is None or self._token_file.exists():
                machine = held.machine.id if held else self.store.kind.word.upper()
                joined = await self.try_token(machine, why)
                if joined is not None:
                    return joined
            if held is not None:
                return held
            await self.wait(backoff.failed())

    async def try_again(self, identity: Identity, why: str) -> Identity | None:
        """A new identity for one whose own is not taken; None, and why not in the log, if none.

        By the token that somebody has brought, else, also when that is refused, by proof of the old
        key.

        Args:
            identity: which is not taken.
            why: it is not.
        """
        if self._token_file.exists():
            joined = await self.try_token(identity.machine.id, why)
            if joined is not None:
                return joined
        try:
            made = await self.store.recover(identity)
        except (Unavailable, Exhausted) as error:
            logger.warning("%s, and the control plane cannot replace it now: %s", why, error)
        except OSError as error:
            logger.warning("%s, and another one cannot be stored: %s", why, error.strerror)
        except ApplianceError as error:
            logger.warning(
                "%s, and it is not replaced (%s): %s", why, error, self._advice(identity.machine.id)
            )
        else:
            logger.info("%s: it has another one, by its own key", why)
            return made
        return None

    async def try_token(self, machine: str, why: str) -> Identity | None:
        """Join with the token that is there; None, and why not in the log, when that fails.

        Args:
            machine: its id, for the advice.
            why: a new identity is needed.
        """
        if not self._token_file.exists():
            logger.warning("%s: %s", why, self._advice(machine))
            return None
        try:
            joined = await self.store.join(self._token_file)
        except Unauthenticated as error:
            refused = f"the join token in {self._token_file} is refused ({error})"
            logger.warning("%s, and %s: %s", why, refused, self._advice(machine))
        except Unavailable as error:
            logger.warning("cannot join yet: %s", error)
        except ApplianceError as error:
            logger.warning("%s, and this %s cannot join: %s", why, self.store.kind.word, error)
        except OSError as error:
            logger.warning("%s, and an identity cannot be stored: %s", why, error.strerror)
        else:
            logger.info("%s: it has a new identity, by %s", why, self._token_file)
            return joined
        return None

    async def wait(self, seconds: float) -> None:
        """Wait so long, or until somebody has put another token there."""
        before, loop = self._stamp(), asyncio.get_running_loop()
        end = loop.time() + seconds
        while self._stamp() in (before, None):
            left = end - loop.time()
            if left <= 0:
                return
            await asyncio.sleep(min(left, self._look))

    def _advice(self, machine: str) -> str:
        kind = self.store.kind
        return (
            f"where you are logged in, type `appliance {kind.word} create-join-token {machine} "
            f"--out join.token`, and bring that file to {self._token_file} (mode 0600, of this "
            f"process's user, {kind.user} on servers with units), which is taken by itself; where "
            f"`appliance up` runs this {kind.word}, `appliance down` and `appliance up` do it"
        )

    def _stamp(self) -> tuple[int, int] | None:
        """Which token is there; None when there is none."""
        try:
            found = self._token_file.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns
