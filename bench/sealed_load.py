"""Opening a sealed file against reading the same bytes plain: what does encryption at rest cost?

Both fill the same reused memory from files in the page cache, as loading weights into parameters
does.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from appliance.crypto.keys import new_key
from appliance.crypto.sealed_place import SealedPlace
from appliance.crypto.sealed_reader import SealedReader
from appliance.crypto.sealed_writer import SealedWriter
from bench.measure import Contender, Outcome, at_least, compare, run, timed

NAME = "sealed_load"
SIZE = 256 << 20
FRESH = "plain read() into fresh memory"
PLACE = SealedPlace(project="bench", object="object", file="weights")


def main() -> int:
    """Run it; 1 when the bar does not hold."""
    return run(NAME, measure)


def measure() -> Outcome:
    """Write 256 MiB plain and sealed, then load both in turn."""
    target = memoryview(bytearray(SIZE))
    key = new_key()
    with tempfile.TemporaryDirectory() as scratch:
        plain, sealed = Path(scratch) / "plain", Path(scratch) / "sealed"
        data = os.urandom(SIZE)
        plain.write_bytes(data)
        with sealed.open("wb") as raw, SealedWriter(raw, key, PLACE) as writer:
            writer.write(data)
        del data

        def load_sealed() -> None:
            with sealed.open("rb") as raw:
                _fill(SealedReader(raw, key, PLACE), target)

        def load_plain() -> None:
            with plain.open("rb", buffering=0) as raw:
                _fill(raw, target)

        def load_plain_copy() -> None:
            plain.read_bytes()

        gigabytes = SIZE / 1e9
        table = compare(
            NAME,
            "GB/s",
            Contender("sealed, into memory", timed(load_sealed, gigabytes)),
            Contender("plain readinto, same memory", timed(load_plain, gigabytes)),
            Contender(FRESH, timed(load_plain_copy, gigabytes)),
        )
    return Outcome([at_least(table, FRESH, 1.0)], {"table": table})


def _fill(source: object, target: memoryview) -> None:
    done = 0
    while done < len(target):
        count = source.readinto(target[done:])  # type: ignore[attr-defined]  # both are raw readers
        if not count:
            message = f"the file ended at {done} of {len(target)} bytes"
            raise SystemExit(message)
        done += count


if __name__ == "__main__":
    sys.exit(main())
