from __future__ import annotations

from pathlib import Path

from appliance.control.config import ControlConfig
from appliance.core.config import document, load

MANUAL = Path(__file__).parents[2] / "docs" / "control.md"


def test_the_manual_shows_every_key_with_its_default() -> None:
    assert document(ControlConfig) in MANUAL.read_text()


def test_paths_are_meant_from_the_folder_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "control.toml"
    file.write_text('cluster_id = "c1"\ndata = "."\n')
    settings = load(ControlConfig, file)
    assert settings.data.resolve() == tmp_path.resolve()
    assert settings.objects_url == (tmp_path.resolve() / "objects").as_uri()
    file.write_text('cluster_id = "c1"\ndata = "."\nobjects = "s3://bucket/objects"\n')
    assert load(ControlConfig, file).objects_url == "s3://bucket/objects"
