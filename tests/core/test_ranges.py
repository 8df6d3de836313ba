"""Numbers that mostly follow each other."""

from hypothesis import given
from hypothesis import strategies as some

from appliance.core.ranges import Ranges

NUMBERS = some.lists(some.integers(1, 40), max_size=60)


@given(NUMBERS)
def test_it_is_the_set_of_what_was_added(numbers: list[int]) -> None:
    found = Ranges()
    for number in numbers:
        found.add(number)
    inside = set(numbers)
    assert [number in found for number in range(45)] == [number in inside for number in range(45)]
    assert found.newest == max(numbers, default=0)
    assert Ranges(reversed(found.spans)).spans == found.spans
    # As few ranges as there can be.
    assert len(found.spans) == sum(number - 1 not in inside for number in inside)
    for last in (0, 10, 44):
        missing = {n for first, end in found.gaps(last) for n in range(first, end + 1)}
        assert missing == set(range(1, last + 1)) - inside
