"""What is in a model that an appliance holds, by its keys: no call gives it out, but a download.

Every version is sealed under a key of its own. Two of the same content differ on disk in each byte;
what was sealed is compared.
"""

from __future__ import annotations

import hashlib
import tomllib

from fsspec.implementations.local import LocalFileSystem

from appliance.control.services.common.keys import Keys
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.data_directory import DataDirectory
from appliance.core.files import read_secret
from appliance.crypto.artifacts import ArtifactReader
from appliance.crypto.keys import Keyring, RootKey
from tests.journeys.running import PROJECT, Appliance


def digests(appliance: Appliance, model: str) -> dict[str, str]:
    """SHA-256 of each file of the only version of a model, in the clear."""
    data = DataDirectory(appliance.data)
    cluster = tomllib.loads((appliance.data / "control.toml").read_text())["cluster_id"]
    keyring = Keyring.open(read_secret(data.keyring), RootKey.read(data.root_key), cluster)
    database = Database(data.state)
    version = tables.artifact_version.c
    wanted = tables.artifact_version.select().where(
        version.project == PROJECT, version.kind == "model", version.artifact == model
    )
    try:
        with database.read() as state:
            (row,) = state.all(wanted.where(version.manifest_digest != ""))
            key = Keys(keyring).data_key(state, PROJECT, row.uid, row.key_version)
    finally:
        database.close()
    reader = ArtifactReader(
        *(LocalFileSystem(), str(appliance.objects / row.folder), key, PROJECT, row.uid),
        digest=row.manifest_digest,
    )
    return {file: hashlib.sha256(reader.read_bytes(file)).hexdigest() for file in reader.files()}
