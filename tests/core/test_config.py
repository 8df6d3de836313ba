"""Configuration: exact keys, exact types, and a table that says them all."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from msgspec import Meta

from appliance.core.config import Retired, doc, document, load
from appliance.core.errors import FailedPrecondition, InvalidInput


@dataclass(frozen=True)
class Listen:
    address: str = field(default="127.0.0.1:7443", metadata=doc("Where to listen."))
    limit: Annotated[float, Meta(gt=0)] = field(default=1.5, metadata=doc("Requests a second."))


@dataclass(frozen=True)
class Store:
    url: str = field(metadata=doc("Where it is."))
    days: Annotated[int, Meta(ge=1, le=36_500)] = field(default=3, metadata=doc("For so long."))


@dataclass(frozen=True)
class Config:
    RETIRED: ClassVar[Mapping[str, Retired]] = {
        "old": Retired("0.2", advice="devices says how many; the value is not used"),
        "gpus": Retired("0.2", "devices"),
        "net.limit": Retired("0.2", "listen.limit"),
    }

    data: Path = field(metadata=doc("Folder of the state."))
    store: Store
    devices: Annotated[int, Meta(ge=1)] = field(default=2, metadata=doc("Devices to offer."))
    strict: bool = field(default=True, metadata=doc("Refuse what is doubtful."))
    kind: Literal["cpu", "cuda"] = field(default="cpu", metadata=doc("What devices are."))
    extra: Path | None = field(default=None, metadata=doc("One more file."))
    listen: Listen = field(default_factory=Listen)

    def __post_init__(self) -> None:
        if self.kind == "cuda" and self.devices > 8:
            raise InvalidInput("kind cuda has 8 devices at most")


KEYS = "data, store, devices, strict, kind, extra, listen"
STORE = Store("s3://b")
LEAST = 'data = "d"\nstore = {url = "s3://b"}\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "control.toml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str) -> tuple[str, dict[str, str]]:
    """What is said, without the path of the file, and the fields."""
    path = written(folder, text)
    with pytest.raises(InvalidInput) as raised:
        load(Config, path)
    said = str(raised.value)
    assert said.startswith(f"{path}: ")
    return said.removeprefix(f"{path}: "), raised.value.fields


def test_defaults(tmp_path: Path) -> None:
    assert load(Config, written(tmp_path, LEAST)) == Config(tmp_path / "d", STORE)


def test_everything(tmp_path: Path) -> None:
    text = """
        data = "/srv/appliance"
        devices = 4
        strict = false
        kind = "cuda"
        extra = "x.pem"
        [store]
        url = "s3://b"
        [listen]
        address = "127.0.0.1:1"
        limit = 3
    """
    assert load(Config, written(tmp_path, text)) == Config(
        data=Path("/srv/appliance"),
        store=STORE,
        devices=4,
        strict=False,
        kind="cuda",
        extra=tmp_path / "x.pem",
        listen=Listen("127.0.0.1:1", 3.0),
    )


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        ("litsen = {}", "litsen", "is not a key; did you mean listen?"),
        ('[listen]\nadress = "x"', "listen.adress", "is not a key; did you mean address?"),
        ('devices = "4"', "devices", "must be a whole number, 1 or more, not '4'"),
        ("devices = true", "devices", "must be a whole number, 1 or more, not True"),
        ("devices = 1.0", "devices", "must be a whole number, 1 or more, not 1.0"),
        ("devices = 0", "devices", "must be a whole number, 1 or more, not 0"),
        ("strict = 1", "strict", "must be true or false, not 1"),
        ('kind = "tpu"', "kind", "must be one of cpu, cuda, not 'tpu'"),
        ('extra = ""', "extra", "must be a path, not ''"),
        ("extra = 1", "extra", "must be a path, not 1"),
        ("listen = 3", "listen", "must be a table, not 3"),
        ("[listen]\naddress = 3", "listen.address", "must be text in quotes, not 3"),
        ("[listen]\nlimit = nan", "listen.limit", "must be a number, more than 0, not nan"),
        ("[listen]\nlimit = inf", "listen.limit", "must be a number, more than 0, not inf"),
        ("[listen]\nlimit = true", "listen.limit", "must be a number, more than 0, not True"),
        ('kind = "cuda"\ndevices = 9', "the file", "kind cuda has 8 devices at most"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, key: str, problem: str) -> None:
    assert refused(tmp_path, LEAST + text) == (f"{key}: {problem}", {key: problem})


def test_everything_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    text = 'devces = 4\nstrict = "no"\n[store]\ndays = 40000\n[listen]\nlimit = 0\nport = 1\n'
    problems = {
        "devces": "is not a key; did you mean devices?",
        "data": "is missing: Folder of the state.",
        "store.url": "is missing: Where it is.",
        "store.days": "must be a whole number from 1 to 36,500, not 40000",
        "strict": "must be true or false, not 'no'",
        "listen.port": "is not a key; the keys here are address, limit",
        "listen.limit": "must be a number, more than 0, not 0",
    }
    said, fields = refused(tmp_path, text)
    assert fields == problems
    assert said == "7 keys are wrong: " + "; ".join(
        f"{key}: {problem}" for key, problem in problems.items()
    )


def test_a_table_that_is_missing_is_named_by_the_keys_it_needs(tmp_path: Path) -> None:
    assert refused(tmp_path, 'data = "d"')[1] == {"store.url": "is missing: Where it is."}


@pytest.mark.parametrize(
    ("text", "settings", "said"),
    [
        ("old = 3", {}, "old is no longer a key: devices says how many; the value is not used"),
        ("gpus = 5", {"devices": 5}, "gpus is no longer a key: write devices"),
        (
            "net = {limit = 7}",
            {"listen": Listen(limit=7.0)},
            "net.limit is no longer a key: write listen.limit",
        ),
    ],
)
def test_a_retired_key_is_taken_for_its_successor_and_said(
    tmp_path: Path,
    text: str,
    settings: dict[str, object],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = written(tmp_path, LEAST + text)
    assert load(Config, path) == Config(tmp_path / "d", STORE, **settings)
    assert caplog.messages == [f"{path}: {said}"]


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        ("gpus = 5\ndevices = 5", "gpus", "is now devices, which is set too: remove gpus"),
        ("gpus = 0", "gpus", "must be a whole number, 1 or more, not 0"),
        ("net = {limt = 7}", "net", f"is not a key; the keys here are {KEYS}"),
        ("net = {limit = 7}\nlisten = 3", "listen", "must be a table, not 3"),
    ],
)
def test_a_retired_key_that_cannot_be_taken_is_named_as_it_is_written(
    tmp_path: Path, text: str, key: str, problem: str
) -> None:
    assert refused(tmp_path, LEAST + text)[1] == {key: problem}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="there is no configuration file"):
        load(Config, tmp_path / "none.toml")
    with pytest.raises(InvalidInput, match="not valid TOML"):
        load(Config, written(tmp_path, "data = = 1"))
    (tmp_path / "b.toml").write_bytes(b"\xff")
    with pytest.raises(InvalidInput, match="not UTF-8"):
        load(Config, tmp_path / "b.toml")


def test_document() -> None:
    assert document(Config) == (
        "| key | type | default | meaning |\n"
        "| --- | --- | --- | --- |\n"
        "| `data` | path | required | Folder of the state. |\n"
        "| `store.url` | text | required | Where it is. |\n"
        "| `store.days` | whole number from 1 to 36,500 | `3` | For so long. |\n"
        "| `devices` | whole number, 1 or more | `2` | Devices to offer. |\n"
        "| `strict` | true or false | `true` | Refuse what is doubtful. |\n"
        "| `kind` | `cpu` or `cuda` | `cpu` | What devices are. |\n"
        "| `extra` | path, optional | unset | One more file. |\n"
        "| `listen.address` | text | `127.0.0.1:7443` | Where to listen. |\n"
        "| `listen.limit` | number, more than 0 | `1.5` | Requests a second. |\n"
        "| `old` | retired in 0.2 | | devices says how many; the value is not used |\n"
        "| `gpus` | retired in 0.2 | | write devices |\n"
        "| `net.limit` | retired in 0.2 | | write listen.limit |\n"
    )


def test_only_dataclasses(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        load(int, written(tmp_path, ""))
