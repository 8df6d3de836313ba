"""The gateway's settings, and their page in the manual."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.core.config import document, load
from appliance.core.errors import InvalidInput
from appliance.gateway.config import GatewayConfig

LEAST = 'cluster_id = "c1"\nkey = "key.pem"\ncertificate = "cert.pem"\nca = "ca.pem"\n'


def test_every_key_is_in_the_manual() -> None:
    manual = Path(__file__).parents[2] / "docs" / "gateway.md"
    assert document(GatewayConfig) in manual.read_text()


def test_files_are_beside_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(LEAST)
    assert load(GatewayConfig, file).key == tmp_path / "key.pem"


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(LEAST + "[routing]\nwait_second = 3.0\n")
    with pytest.raises(InvalidInput, match="wait_seconds"):
        load(GatewayConfig, file)
