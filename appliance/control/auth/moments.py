"""Whether a stored time is trusted after the clock was wrong for a while.

Rules kept here:
* what says when something was made, seen or proved lies in the past; one that lies further ahead
  than five minutes was written under a clock that was wrong, and nothing is granted by it;
* five minutes are what clocks of one network may differ.

The fault it prevents: a clock that was a year ahead for an hour leaves credentials that live for a
year, or waits that last for one. Pure. Called by everything in `auth` that keeps a moment, and by
the start of the control plane.
"""

from __future__ import annotations

from datetime import datetime, timedelta

TOLERANCE = timedelta(minutes=5)


def believed(moment: datetime, now: datetime) -> bool:
    """Whether `moment`, at which something is said to have happened, can have been."""
    return moment <= now + TOLERANCE
