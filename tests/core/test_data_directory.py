"""A part of a data directory that was lost is named, and nothing is ever made over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.core.data_directory import KEPT, PARTS, DataDirectory
from appliance.core.errors import AlreadyExists, FailedPrecondition, NotFound


@pytest.fixture
def whole(tmp_path: Path) -> DataDirectory:
    for part in PARTS:
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (tmp_path / part).touch()
    return DataDirectory(tmp_path)


def test_a_whole_one_is_whole_and_taken(whole: DataDirectory) -> None:
    whole.check_complete()
    with pytest.raises(AlreadyExists, match="already holds an appliance"):
        whole.check_unused()


@pytest.mark.parametrize("part", PARTS)
def test_what_is_lost_is_named_with_what_to_do(whole: DataDirectory, part: str) -> None:
    (whole.path / part).unlink()
    expected = f"{whole.path} holds an appliance whose {part} is missing; {PARTS[part]}"
    for check in (whole.check_complete, whole.check_unused):
        with pytest.raises(FailedPrecondition) as refused:
            check()
        assert refused.value.message == expected
        assert "put " in refused.value.message
        assert "appliance init" not in refused.value.message


def test_the_first_of_several_says_what_to_do_and_the_others_are_named(
    whole: DataDirectory,
) -> None:
    for part in KEPT:
        (whole.path / part).unlink()
    with pytest.raises(FailedPrecondition) as refused:
        whole.check_complete()
    assert "whose root.key is missing (keyring.sealed, state.db, audit too); without it" in str(
        refused.value
    )


def test_only_what_is_asked_for_is_missed(whole: DataDirectory) -> None:
    (whole.path / "node" / "node.toml").unlink()
    whole.check_complete(KEPT)


def test_a_folder_without_any_part_holds_none(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(NotFound, match="make one with `appliance init"):
            DataDirectory(folder).check_complete(KEPT)
        DataDirectory(folder).check_unused()
    (tmp_path / "letter.txt").touch()
    with pytest.raises(FailedPrecondition, match="is not an empty folder"):
        DataDirectory(tmp_path).check_unused()
