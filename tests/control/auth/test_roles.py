"""Roles and permissions: complete, in words, the same as in the protos; and roles of a site."""

import importlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from appliance.control.auth.roles import Roles
from appliance.core.errors import FailedPrecondition
from appliance.wire.rules import AccessRule, rules_of

ROOT = Path(__file__).parents[3]
MACHINES = {"agent", "routing", "workers"}


def _rules() -> Iterable[AccessRule]:
    files = sorted((ROOT / "appliance" / "api").rglob("*_service_pb2.py"))
    services = [
        service
        for path in files
        for service in importlib.import_module(
            ".".join(path.relative_to(ROOT).with_suffix("").parts)
        ).DESCRIPTOR.services_by_name.values()
    ]
    return rules_of(services).values()


def test_permissions_are_those_of_the_protos(roles: Roles) -> None:
    assert set(roles.permissions) == {rule.permission for rule in _rules() if rule.permission}


def test_every_permission_has_words(roles: Roles) -> None:
    assert [name for name, words in roles.permissions.items() if not words.endswith(".")] == []


def test_the_roles(roles: Roles) -> None:
    found = {
        role.id: (role.assignable, " ".join(sorted(role.scopes)), len(role.permissions))
        for role in roles.roles.values()
    }
    assert found == {
        "administrator": (True, "everywhere platform", 86),
        "auditor": (True, "everywhere platform", 13),
        "owner": (True, "everywhere project", 53),
        "developer": (True, "everywhere project", 41),
        "viewer": (True, "everywhere project", 17),
        "inference": (True, "everywhere project", 2),
        "node": (False, "platform", 3),
        "gateway": (False, "platform", 4),
    }


def test_a_viewer_reads_no_text(roles: Roles) -> None:
    """What holds text has a right of its own: `read...`, or asking a model."""
    viewer = set(roles.roles["viewer"].permissions)
    reading = {name for name in roles.permissions if name.partition(".")[2].startswith("read")}
    assert reading == {"datasets.readReport", "jobs.readLogs"}
    assert not viewer & (reading | {"endpoints.infer"})
    assert reading < set(roles.roles["developer"].permissions)


def test_an_administrator_may_do_what_people_can_do_and_no_machine_s_work(roles: Roles) -> None:
    people = {name for name in roles.permissions if name.partition(".")[0] not in MACHINES}
    assert set(roles.roles["administrator"].permissions) == people - roles.set_aside


def test_where_permissions_are_decided(roles: Roles) -> None:
    both = {name for name, where in roles.decided.items() if len(where) == 2}
    assert both == {
        "bindings.create",
        "bindings.delete",
        "bindings.list",
        "gateways.createJoinToken",
        "nodes.createJoinToken",
    }
    nouns = {name.partition(".")[0] for name in roles.permissions if roles.is_decided(name, "p")}
    assert nouns == {
        *(
            "bindings",
            "checkpoints",
            "datasets",
            "endpoints",
            "gateways",
            "jobs",
            "models",
            "nodes",
            "projects",
        ),
        *("reports", "serviceAccounts", "tokenizers", "tombstones", "uploads"),
    }


def test_only_what_takes_data_out_is_in_no_role(roles: Roles) -> None:
    given = {item for role in roles.roles.values() for item in role.permissions}
    assert set(roles.permissions) - given == roles.set_aside
    assert roles.set_aside == {"models.download", "datasets.download"}


EXPORTER = """
exporter:
  description: Takes models out.
  scopes: [project]
  permissions: [models.download, models.get]
"""


def site_file(folder: Path, text: str = EXPORTER) -> Path:
    file = folder / "roles.yaml"
    file.write_text(text)
    file.chmod(0o644)
    return file


def test_a_site_has_roles_of_its_own(tmp_path: Path, roles: Roles) -> None:
    both = roles.with_site(site_file(tmp_path))
    exporter = both.roles["exporter"]
    assert (exporter.site, exporter.assignable) == (True, True)
    assert both.given("exporter", "demo") == ["models.download", "models.get"]
    # What no built-in role holds is still that.
    assert both.set_aside == roles.set_aside
    assert roles.with_site(None) is roles


@pytest.mark.attack
@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("exporter:", "viewer:", "viewer is a built-in role"),
        ("models.get", "agent.releaseKeys", "unknown or doubled"),
        ("models.get", "workers.attach", "unknown or doubled"),
        ("models.get", "models.*", "unknown or doubled"),
        ("models.get", "[models.get]", "unknown or doubled"),
        ("models.get", "nodes.get", "where it gives nothing"),
        ("[project]", "[[project]]", "scopes are not some of"),
        ("  scopes", "  assignable: false\n  scopes", "needs exactly"),
        (EXPORTER, "- a", "not a mapping"),
        (EXPORTER, "? [a]\n: b", "unhashable key"),
        (EXPORTER, "[" * 5000, "nested too deep"),
    ],
)
def test_a_role_of_a_site_gives_no_machine_s_rights(
    old: str, new: str, why: str, tmp_path: Path, roles: Roles
) -> None:
    with pytest.raises(FailedPrecondition, match=rf"(?s)roles\.yaml is refused: .*{why}"):
        roles.with_site(site_file(tmp_path, EXPORTER.replace(old, new)))


@pytest.mark.attack
def test_roles_that_others_could_write_are_refused(tmp_path: Path, roles: Roles) -> None:
    file = site_file(tmp_path)
    for mode in (0o664, 0o646):
        file.chmod(mode)
        with pytest.raises(FailedPrecondition, match=r"others could write it.*chmod 644"):
            roles.with_site(file)
    file.chmod(0o644)
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    with pytest.raises(FailedPrecondition, match="no regular file"):
        roles.with_site(link)
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        roles.with_site(tmp_path / "none.yaml")


def test_roles_below_owner_give_no_roles_and_no_tokens(roles: Roles) -> None:
    for name in ("developer", "viewer", "inference"):
        nouns = {item.partition(".")[0] for item in roles.roles[name].permissions}
        assert nouns <= {
            *("checkpoints", "datasets", "endpoints", "jobs", "models", "projects", "reports"),
            *("tokenizers", "tombstones", "uploads"),
        }


def test_reading_roles_change_nothing(roles: Roles) -> None:
    verbs = {
        item.partition(".")[2]
        for name in ("auditor", "viewer")
        for item in roles.roles[name].permissions
    }
    assert verbs == {"get", "list", "listExpirations", "listJoinTokens", "export"}


@pytest.mark.attack
def test_whoever_may_upload_may_know_which_datasets_there_are(roles: Roles) -> None:
    """Who uploads into one that is not there is told so plainly, and how to make it."""
    uploaders = [role for role in roles.roles.values() if "datasets.upload" in role.permissions]
    assert uploaders
    for role in uploaders:
        assert {"datasets.list", "datasets.create"} <= set(role.permissions), role.id


@pytest.mark.parametrize(
    ("file", "old", "new", "why"),
    [
        ("roles.yaml", "    - jobs.create\n", "    - jobs.craete\n", "unknown or doubled"),
        (
            "roles.yaml",
            "    - jobs.list\n",
            "    - jobs.list\n    - jobs.list\n",
            "unknown or doubled",
        ),
        ("roles.yaml", "assignable: true", "assignable: perhaps", "is not a bool"),
        ("roles.yaml", "[everywhere, project]", "[galaxy]", "scopes are not some of"),
        ("roles.yaml", "[everywhere, project]", "[]", "scopes are not some of"),
        ("roles.yaml", "[everywhere, project]", "[platform]", "where it gives nothing"),
        ("nouns.yaml", "jobs: [projects]\n", "", "where jobs.cancel is decided"),
        ("nouns.yaml", "jobs: [projects]", "jobs: [galaxy]", "'jobs' is no noun"),
        ("nouns.yaml", "jobs: [projects]", "jobs: [projects]\njobbs: [projects]", "'jobbs' is no"),
        ("roles.yaml", "viewer:\n", "owner:\n", "the same key twice"),
        ("roles.yaml", "viewer:\n", "View er:\n", "needs exactly"),
        ("permissions.yaml", "jobs.get:", "jobs.*:", "is not `nouns.verb"),
        ("permissions.yaml", "jobs.get: ", "jobs.get\n", "could not find expected"),
    ],
)
def test_a_typing_error_stops_the_start(
    file: str, old: str, new: str, why: str, tmp_path: Path, roles: Roles
) -> None:
    source = ROOT / "policies"
    for path in source.iterdir():
        (tmp_path / path.name).write_text(path.read_text())
    assert Roles.load(tmp_path) == roles
    (tmp_path / file).write_text((tmp_path / file).read_text().replace(old, new))
    with pytest.raises(FailedPrecondition, match=why):
        Roles.load(tmp_path)
