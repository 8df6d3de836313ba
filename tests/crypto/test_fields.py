"""Sealed values: they open in their own place, under their own key, unchanged."""

import itertools
from typing import Any

import pytest

from appliance.core.errors import Tampered
from appliance.crypto.sealed_values import open_field, seal_field

KEY = bytes(range(32))
AAD: dict[str, str | int] = {"table": "totp", "row": "alice", "column": "seed", "version": 1}


@pytest.mark.parametrize("size", [0, 1, 32, 70_000])
def test_what_was_sealed_is_opened(size: int) -> None:
    assert open_field(seal_field(b"x" * size, KEY, AAD), KEY, AAD) == b"x" * size


def test_the_order_of_the_names_does_not_matter() -> None:
    assert (
        open_field(seal_field(b"x", KEY, AAD), KEY, dict(sorted(AAD.items(), reverse=True))) == b"x"
    )


def test_known_answer_opens(known_answers: dict[str, Any]) -> None:
    answer = known_answers["field"]
    sealed, key = bytes.fromhex(answer["sealed"]), bytes.fromhex(answer["key"])

    assert open_field(sealed, key, answer["aad"]) == answer["plain"].encode()


def test_equal_values_look_different() -> None:
    assert len({seal_field(b"same", KEY, AAD) for _ in range(100)}) == 100


@pytest.mark.attack
def test_every_change_is_refused() -> None:
    sealed = seal_field(b"secret", KEY, AAD)
    changes = [sealed[:length] for length in range(len(sealed))]
    changes += [sealed + b"\0", sealed + sealed]
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        changes.append(bytes(changed))
    for change in changes:
        with pytest.raises(Tampered):
            open_field(change, KEY, AAD)


@pytest.mark.attack
def test_every_move_between_places_is_refused() -> None:
    places: list[dict[str, str | int]] = [
        {"table": table, "row": row, "column": column, "version": version}
        for table, row, column, version in itertools.product(
            ("totp", "token"), ("alice", "bob"), ("seed", "secret"), (1, 2)
        )
    ]
    places += [{}, {"table": "totp"}, {**AAD, "more": ""}, {**AAD, "version": "1"}]
    for written, read in itertools.permutations(places, 2):
        with pytest.raises(Tampered):
            open_field(seal_field(b"secret", KEY, written), KEY, read)


@pytest.mark.attack
def test_another_key_is_refused_and_the_value_named() -> None:
    with pytest.raises(Tampered) as caught:
        open_field(seal_field(b"secret", KEY, AAD), bytes(32), AAD)

    assert caught.value.metadata["object"] == "column seed, row alice, table totp, version 1"
    assert "secret" not in str(caught.value)
