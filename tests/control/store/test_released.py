"""Every released version's data directory opens, and its people, tokens and data go on as before.

The directories in `tests/data` were made by real appliances of these versions (`freeze.py` there).
"""

import hashlib
import json
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyotp
import pytest

from appliance.api.access.v1 import binding_pb2
from appliance.api.access.v1 import binding_service_pb2 as bindings_rpc
from appliance.api.access.v1 import binding_service_pb2_grpc as bindings_grpc
from appliance.api.access.v1 import user_service_pb2 as users_rpc
from appliance.api.access.v1 import user_service_pb2_grpc as users_grpc
from appliance.api.auth.v1 import auth_service_pb2 as auth_rpc
from appliance.api.auth.v1 import auth_service_pb2_grpc as auth_grpc
from appliance.api.data.v1 import dataset_service_pb2 as datasets_rpc
from appliance.api.data.v1 import dataset_service_pb2_grpc as datasets_grpc
from appliance.api.data.v1 import tokenizer_service_pb2 as tokenizers_rpc
from appliance.api.data.v1 import tokenizer_service_pb2_grpc as tokenizers_grpc
from appliance.api.jobs.v1 import job_service_pb2 as jobs_rpc
from appliance.api.jobs.v1 import job_service_pb2_grpc as jobs_grpc
from appliance.api.models.v1 import model_service_pb2 as models_rpc
from appliance.api.models.v1 import model_service_pb2_grpc as models_grpc
from appliance.api.projects.v1 import project_service_pb2 as projects_rpc
from appliance.api.projects.v1 import project_service_pb2_grpc as projects_grpc
from appliance.control.store import migrate
from appliance.core.errors import Denied, InvalidInput
from tests.fakes.appliance import Appliance, MovingClock, bearer, error_of, running

DATA = Path(__file__).parents[2] / "data"
VERSIONS = sorted(path.stem for path in DATA.glob("*.tar"))
MIGRATION_0001 = "a0f3c75b0954d75de99d4d2b7a79d9699d2e02a677ee746480e0858b0b83a4f4"
PROJECT = "projects/demo"


@dataclass
class Released:
    """A released appliance, opened by this version a minute after it was stopped."""

    appliance: Appliance
    facts: dict[str, Any]

    async def log_in(self, user: str) -> str:
        """A live session: password, then the authenticator that was enrolled back then."""
        auth = self.appliance.api(auth_grpc.AuthServiceStub)
        password = self.facts["passwords"][user]
        started = await auth.Login(auth_rpc.LoginRequest(user=user, password=password))
        assert started.next_step == auth_rpc.SESSION_STEP_VERIFY_TOTP
        code = pyotp.TOTP(self.facts["totp"][user]).at(self.appliance.clock())
        request = auth_rpc.VerifyTotpRequest(token=started.token, code=code)
        return str((await auth.VerifyTotp(request)).token)


@pytest.fixture(params=VERSIONS)
async def released(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Released]:
    facts = json.loads((DATA / f"{request.param}.json").read_text())
    with tarfile.open(DATA / f"{request.param}.tar") as archive:
        archive.extractall(tmp_path / "kept", filter="tar")
    moment = datetime.fromisoformat(facts["stopped"]) + timedelta(minutes=1)
    clock = MovingClock(moment - datetime.now(UTC))
    async with running(tmp_path / "kept" / "data", tmp_path / "data", clock=clock) as appliance:
        yield Released(appliance, facts)


async def test_people_and_applications_come_back(released: Released) -> None:
    appliance = released.appliance
    for user in ("alice", "dora", "olga"):
        token = await released.log_in(user)
        who = await appliance.api(auth_grpc.AuthServiceStub).WhoAmI(
            auth_rpc.WhoAmIRequest(), metadata=bearer(token)
        )
        assert who.principal == f"users/{user}"
        assert who.roles
    who = await appliance.api(auth_grpc.AuthServiceStub).WhoAmI(
        auth_rpc.WhoAmIRequest(), metadata=bearer(released.facts["app"])
    )
    assert who.principal == "serviceAccounts/app"


async def test_everything_that_was_there_is_there(released: Released) -> None:
    appliance = released.appliance
    token = bearer(await released.log_in("alice"))
    found = {
        "projects": await appliance.api(projects_grpc.ProjectServiceStub).ListProjects(
            projects_rpc.ListProjectsRequest(), metadata=token
        ),
        "users": await appliance.api(users_grpc.UserServiceStub).ListUsers(
            users_rpc.ListUsersRequest(), metadata=token
        ),
        "datasets": await appliance.api(datasets_grpc.DatasetServiceStub).ListDatasets(
            datasets_rpc.ListDatasetsRequest(parent=PROJECT), metadata=token
        ),
        "tokenizers": await appliance.api(tokenizers_grpc.TokenizerServiceStub).ListTokenizers(
            tokenizers_rpc.ListTokenizersRequest(parent=PROJECT), metadata=token
        ),
        "models": await appliance.api(models_grpc.ModelServiceStub).ListModels(
            models_rpc.ListModelsRequest(parent=PROJECT), metadata=token
        ),
        "jobs": await appliance.api(jobs_grpc.JobServiceStub).ListJobs(
            jobs_rpc.ListJobsRequest(parent=PROJECT), metadata=token
        ),
    }
    counts = {name: len(getattr(answer, name)) for name, answer in found.items()}
    assert counts == {name: released.facts["lists"][name] for name in counts}
    locked = {user.name for user in found["users"].users if user.locked}
    assert locked == {"users/erin"}


async def test_sealed_data_is_read(released: Released) -> None:
    token = bearer(await released.log_in("dora"))
    report = await released.appliance.api(datasets_grpc.DatasetServiceStub).GetPrepareReport(
        datasets_rpc.GetPrepareReportRequest(name=f"{PROJECT}/datasets/tokens/versions/1"),
        metadata=token,
    )
    assert report.documents > 0


async def test_roles_hold_where_they_held(released: Released) -> None:
    token = bearer(await released.log_in("alice"))
    stub = released.appliance.api(bindings_grpc.BindingServiceStub)
    held = set()
    for scope in ("platform", "projects/-"):
        request = bindings_rpc.ListBindingsRequest(scope=scope)
        listed = await stub.ListBindings(request, metadata=token)
        held |= {(b.principal, b.role, b.scope) for b in listed.bindings}
    assert held == {
        ("users/alice", "roles/administrator", "platform"),
        ("users/alice", "roles/administrator", "projects/-"),
        ("users/audi", "roles/auditor", "platform"),
        ("users/audi", "roles/auditor", "projects/-"),
        # Everywhere was said of projects and meant the appliance itself, too.
        ("users/olga", "roles/owner", "projects/-"),
        ("users/dora", "roles/developer", "projects/demo"),
        ("users/erin", "roles/viewer", "projects/demo"),
        ("serviceAccounts/app", "roles/inference", "projects/demo"),
    }


@pytest.mark.attack
async def test_an_owner_of_everything_no_longer_makes_herself_administrator(
    released: Released,
) -> None:
    token = bearer(await released.log_in("olga"))
    stub = released.appliance.api(bindings_grpc.BindingServiceStub)

    def bind(role: str, scope: str, principal: str = "users/olga") -> Any:
        binding = binding_pb2.Binding(principal=principal, role=f"roles/{role}", scope=scope)
        return stub.CreateBinding(
            bindings_rpc.CreateBindingRequest(binding=binding), metadata=token
        )

    assert isinstance(await error_of(bind("administrator", "")), InvalidInput)
    for role in ("administrator", "auditor"):
        assert isinstance(await error_of(bind(role, "platform")), Denied)
    # In projects she goes on as before.
    for scope in (PROJECT, "projects/other", "projects/-"):
        assert (await bind("viewer", scope, "users/dora")).scope == scope
    users = released.appliance.api(users_grpc.UserServiceStub)
    error = await error_of(users.ListUsers(users_rpc.ListUsersRequest(), metadata=token))
    assert isinstance(error, Denied)


async def test_an_auditor_and_an_administrator_go_on(released: Released) -> None:
    appliance = released.appliance
    users = appliance.api(users_grpc.UserServiceStub)
    stub = appliance.api(bindings_grpc.BindingServiceStub)
    for user in ("audi", "alice"):
        token = bearer(appliance.session(user))
        assert (await users.ListUsers(users_rpc.ListUsersRequest(), metadata=token)).users
        for scope in ("platform", "projects/-", PROJECT):
            request = bindings_rpc.ListBindingsRequest(scope=scope)
            assert (await stub.ListBindings(request, metadata=token)).bindings


def test_migrations_are_append_only() -> None:
    """A migration that was released is never edited: directories were made by it."""
    first = migrate.MIGRATIONS / "versions" / "0001_create_everything.py"
    assert hashlib.sha256(first.read_bytes()).hexdigest() == MIGRATION_0001
