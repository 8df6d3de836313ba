"""What a worker refuses to serve, as its agent sees it: one line, a code, and nothing left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import tiny_llama
from tests.fakes.worker_agent import Identities, Store, WorkerProcess


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("refusals")
    tiny_llama.make(tmp / "model")
    return tmp / "model"


class Start:
    """Starts workers that do not come up."""

    def __init__(self, tmp: Path, model: Path) -> None:
        self.store = Store(tmp / "store").seal(model)
        self._log = tmp / "log"

    def __call__(
        self, orders: dict[str, Any] | None = None, **model: str
    ) -> tuple[dict[str, Any], int]:
        """The worker's line and its exit code; it has left nothing."""
        document = self.store.orders(Identities()) | (orders or {})
        document["model"] |= model
        worker = WorkerProcess(document, self._log)
        try:
            line = worker.report()
            code = worker.wait(20)
            assert worker.left() == []
            assert not list(Path("/dev/shm").glob(f"appliance-worker-{worker.process.pid}-*"))
            return line, code
        finally:
            worker.end()


@pytest.fixture
def start(tmp_path: Path, sealed: Path) -> Start:
    return Start(tmp_path, sealed)


@pytest.mark.attack
def test_a_wrong_key(start: Start) -> None:
    line, code = start(key="A" * 43 + "=")
    assert (line["type"], line["reason"], code) == ("error", "OBJECT_TAMPERED", 1)
    assert start.store.uid in line["message"]


@pytest.mark.attack
def test_a_manifest_that_is_not_on_record(start: Start) -> None:
    line, code = start(digest="0" * 64)
    assert (line["reason"], code) == ("STALE_OBJECT", 1)
    assert start.store.uid in line["message"]


@pytest.mark.attack
def test_another_project_s_model(start: Start) -> None:
    line, code = start(project="other")
    assert (line["reason"], code) == ("OBJECT_TAMPERED", 1)


def test_a_model_that_is_not_there(start: Start) -> None:
    line, code = start(folder="p/missing", digest="")
    assert (line["reason"], code) == ("RESOURCE_NOT_FOUND", 1)


def test_too_small_a_cache(start: Start) -> None:
    line, code = start(orders={"cache_bytes": 1000})
    assert (line["reason"], code) == ("FAILED_PRECONDITION", 1)
    assert "at least" in line["message"]


def test_ranks_that_do_not_divide_the_heads(start: Start) -> None:
    line, code = start(orders={"tensor_parallel": 3, "devices": [0, 1, 2]})
    assert (line["reason"], code) == ("INVALID_INPUT", 1)
    assert "3 tensor-parallel ranks" in line["message"]


@pytest.mark.attack
@pytest.mark.parametrize("file", ["config.json", "modeling_evil.py"])
def test_a_model_with_code(tmp_path: Path, sealed: Path, file: str) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    for source in sealed.iterdir():
        (folder / source.name).write_bytes(source.read_bytes())
    if file == "config.json":
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.Y"}}))
    else:
        (folder / file).write_text("print()")
    line, code = Start(tmp_path, folder)()
    assert (line["reason"], code) == ("INVALID_INPUT", 1)
    assert ("auto_map" if file == "config.json" else file) in line["message"]


@pytest.mark.attack
@pytest.mark.engine
def test_a_changed_byte_of_a_weight(start: Start) -> None:
    """Found in a rank, two processes away, while it loads."""
    path = start.store.folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    line, code = start()
    assert (line["type"], line["reason"], code) == ("error", "OBJECT_TAMPERED", 1)
    assert line["object"] == start.store.uid
    assert "model.safetensors" in line["message"]
