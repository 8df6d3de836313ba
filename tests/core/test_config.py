"""Configuration: exact keys, exact types, and a table that says them all."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from appliance.core.config import document, load
from appliance.core.errors import FailedPrecondition, InvalidInput


class Level(Enum):
    INFO = "info"
    DEBUG = "debug"


@dataclass(frozen=True)
class Listen:
    address: str = field(default="127.0.0.1:7443", metadata={"doc": "Where to listen."})
    limit: float = field(default=1.5, metadata={"doc": "Requests a second."})


@dataclass(frozen=True)
class Config:
    RETIRED: ClassVar[Mapping[str, str]] = {"old": "devices says how many"}

    data: Path = field(metadata={"doc": "Folder of the state."})
    devices: int = field(default=2, metadata={"doc": "Devices to offer."})
    strict: bool = field(default=True, metadata={"doc": "Refuse what is doubtful."})
    level: Level = field(default=Level.INFO, metadata={"doc": "How much to log."})
    kind: Literal["cpu", "cuda"] = field(default="cpu", metadata={"doc": "What devices are."})
    extra: Path | None = field(default=None, metadata={"doc": "One more file."})
    names: tuple[str, ...] = field(default=("a",), metadata={"doc": "Other names."})
    labels: dict[str, str] = field(default_factory=dict, metadata={"doc": "Labels."})
    listen: Listen = field(default_factory=Listen, metadata={"doc": "The listener."})

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise InvalidInput("devices must be at least 1")


def written(folder: Path, text: str) -> Path:
    path = folder / "control.toml"
    path.write_text(text)
    return path


def test_a_retired_key_is_taken_and_its_successor_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = 'data = "state"\nold = 3\n'
    assert load(Config, written(tmp_path, text)) == Config(data=tmp_path / "state")
    assert caplog.messages == [
        f"{tmp_path / 'control.toml'}: old is no longer a key: devices says how many"
    ]


def test_defaults(tmp_path: Path) -> None:
    assert load(Config, written(tmp_path, 'data = "state"')) == Config(data=tmp_path / "state")


def test_everything(tmp_path: Path) -> None:
    text = """
        data = "/srv/appliance"
        devices = 4
        strict = false
        level = "debug"
        kind = "cuda"
        extra = "x.pem"
        names = ["b", "c"]
        [labels]
        rack = "r1"
        [listen]
        address = "127.0.0.1:1"
        limit = 3
    """
    assert load(Config, written(tmp_path, text)) == Config(
        data=Path("/srv/appliance"),
        devices=4,
        strict=False,
        level=Level.DEBUG,
        kind="cuda",
        extra=tmp_path / "x.pem",
        names=("b", "c"),
        labels={"rack": "r1"},
        listen=Listen("127.0.0.1:1", 3.0),
    )


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        ('data = "d"\nlitsen = {}', "litsen", "is not a key; did you mean listen?"),
        (
            'data = "d"\n[listen]\nadress = "x"',
            "listen.adress",
            "is not a key; did you mean address?",
        ),
        ("", "data", "is missing: Folder of the state."),
        ('data = "d"\ndevices = "4"', "devices", "must be a whole number, not '4'"),
        ('data = "d"\ndevices = true', "devices", "must be a whole number, not True"),
        ('data = "d"\ndevices = 1.0', "devices", "must be a whole number, not 1.0"),
        ('data = "d"\nstrict = 1', "strict", "must be true or false, not 1"),
        ('data = "d"\nlevel = "loud"', "level", "must be one of info, debug; 'loud' is not"),
        ('data = "d"\nkind = "tpu"', "kind", "must be one of cpu, cuda; 'tpu' is not"),
        ('data = "d"\nnames = "b"', "names", "must be a list"),
        ('data = "d"\nnames = [1]', "names[0]", "must be text in quotes, not 1"),
        ('data = "d"\nlabels = {rack = 1}', "labels.rack", "must be text in quotes, not 1"),
        ('data = "d"\nlabels = 1', "labels", "must be a table"),
        ('data = "d"\nlisten = 3', "listen", "must be a table"),
        ('data = ""', "data", "must be a path"),
        ('data = "d"\ndevices = 0', "the file", "devices must be at least 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, key: str, problem: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InvalidInput) as raised:
        load(Config, path)
    assert str(raised.value) == f"{path}: {key}: {problem}"
    assert raised.value.fields == {key: problem}


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
        "| `devices` | whole number | `2` | Devices to offer. |\n"
        "| `strict` | true or false | `true` | Refuse what is doubtful. |\n"
        "| `level` | `info` or `debug` | `info` | How much to log. |\n"
        "| `kind` | `cpu` or `cuda` | `cpu` | What devices are. |\n"
        "| `extra` | path, optional | unset | One more file. |\n"
        "| `names` | list of text | `['a']` | Other names. |\n"
        "| `labels` | table of text | `{}` | Labels. |\n"
        "| `listen.address` | text | `127.0.0.1:7443` | Where to listen. |\n"
        "| `listen.limit` | number | `1.5` | Requests a second. |\n"
    )


def test_only_dataclasses(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        load(int, written(tmp_path, ""))
