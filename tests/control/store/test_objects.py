"""Where sealed objects lie: one private root, and folders that cannot leave it."""

import stat
from pathlib import Path

import pytest

from appliance.control.store.objects import new_uid, open_store
from appliance.core.errors import FailedPrecondition, InvalidInput


def test_a_local_store_is_a_private_folder(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/objects")
    assert stat.S_IMODE((tmp_path / "objects").stat().st_mode) == 0o700
    folder = store.folder("demo", "0123abcd")
    assert (folder, store.path(folder)) == ("demo/0123abcd", f"{tmp_path}/objects/demo/0123abcd")


def test_a_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir(mode=0o755)
    (tmp_path / "objects").chmod(0o755)
    with pytest.raises(FailedPrecondition, match="open to other users"):
        open_store(f"file://{tmp_path}/objects")


def test_an_unknown_kind_of_storage_is_refused() -> None:
    with pytest.raises(InvalidInput, match="is not a storage location"):
        open_store("carrier-pigeon://loft")


@pytest.mark.attack
@pytest.mark.parametrize(("project", "uid"), [("..", "a"), ("a", "../b"), ("a", ""), ("a/b", "c")])
def test_a_folder_stays_below_the_root(tmp_path: Path, project: str, uid: str) -> None:
    store = open_store(f"file://{tmp_path}/objects")
    with pytest.raises(InvalidInput, match="cannot be part of a folder"):
        store.folder(project, uid)


def test_identifiers_are_128_random_bits() -> None:
    assert len({new_uid() for _ in range(100)}) == 100
    assert len(new_uid()) == 32
