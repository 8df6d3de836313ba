import uuid
from collections.abc import Iterator

import pytest

from appliance.api.data.v1 import dataset_pb2, dataset_service_pb2
from appliance.api.data.v1.dataset_service_pb2_grpc import DatasetServiceStub
from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.api.jobs.v1.job_service_pb2_grpc import JobServiceStub
from appliance.api.projects.v1 import project_pb2, project_service_pb2
from appliance.api.projects.v1.project_service_pb2_grpc import ProjectServiceStub
from appliance.client.connection import Connection
from appliance.client.health import check
from appliance.client.pages import PAGE_SIZE, all_pages
from appliance.core.errors import Denied, InvalidInput, Unavailable
from tests.fakes.control_api import REQUEST_ID, FakeApi
from tests.fakes.wire import other_authority

TOKEN = "sla_ses_x_y_z"


def test_a_call_carries_the_token_and_a_request_id(api: FakeApi) -> None:
    api.answers["ProjectService.GetProject"] = project_pb2.Project(name="projects/p")
    with Connection(api.address, api.ca_pem, TOKEN) as connection:
        method = connection.stub(ProjectServiceStub).GetProject
        request = project_service_pb2.GetProjectRequest(name="projects/p")
        assert connection.call(method, request).name == "projects/p"
        connection.call(method, request)
    first, second = api.calls
    assert first.token == TOKEN
    assert uuid.UUID(first.metadata["x-request-id"]) != uuid.UUID(second.metadata["x-request-id"])


def test_without_a_token_none_is_sent(api: FakeApi) -> None:
    api.answers["ProjectService.GetProject"] = project_pb2.Project()
    with Connection(api.address, api.ca_pem) as connection:
        method = connection.stub(ProjectServiceStub).GetProject
        connection.call(method, project_service_pb2.GetProjectRequest())
    assert "authorization" not in api.calls[0].metadata


def test_an_error_comes_back_as_itself(api: FakeApi) -> None:
    api.answers["ProjectService.GetProject"] = Denied("not you")
    with Connection(api.address, api.ca_pem) as connection:
        method = connection.stub(ProjectServiceStub).GetProject
        with pytest.raises(Denied) as caught:
            connection.call(method, project_service_pb2.GetProjectRequest())
    assert (caught.value.message, caught.value.metadata["request_id"]) == ("not you", REQUEST_ID)


def test_a_stream_may_fail_in_its_middle(api: FakeApi) -> None:
    api.answers["JobService.WatchJob"] = [job_pb2.Job(name="a"), Unavailable("gone")]
    seen = []
    with Connection(api.address, api.ca_pem) as connection:
        method = connection.stub(JobServiceStub).WatchJob
        stream = connection.stream(method, job_service_pb2.WatchJobRequest(name="a"))
        seen.append(next(stream).name)
        with pytest.raises(Unavailable, match="gone"):
            next(stream)
    assert seen == ["a"]


def test_an_upload_that_cannot_go_on_fails_as_its_own_reason(api: FakeApi) -> None:
    api.answers["DatasetService.UploadDatasetVersion"] = dataset_pb2.DatasetVersion()

    def broken() -> Iterator[object]:
        yield dataset_service_pb2.UploadDatasetVersionRequest(parent="projects/p/datasets/d")
        raise InvalidInput("line 7 is no JSON")

    with Connection(api.address, api.ca_pem) as connection:
        method = connection.stub(DatasetServiceStub).UploadDatasetVersion
        with pytest.raises(InvalidInput, match="line 7"):
            connection.upload(method, broken())


@pytest.mark.attack
def test_a_server_of_another_authority_gets_no_token(api: FakeApi) -> None:
    api.answers["ProjectService.GetProject"] = project_pb2.Project()
    with Connection(api.address, other_authority().certificate_pem, TOKEN) as connection:
        method = connection.stub(ProjectServiceStub).GetProject
        with pytest.raises(Unavailable):
            connection.call(method, project_service_pb2.GetProjectRequest(), timeout=5)
    assert api.calls == []


def test_pages_are_walked_to_the_end(api: FakeApi) -> None:
    def page(request: project_service_pb2.ListProjectsRequest) -> object:
        start = int(request.page_token or 0)
        return project_service_pb2.ListProjectsResponse(
            projects=[project_pb2.Project(name=f"projects/p{start}")],
            next_page_token=str(start + 1) if start < 2 else "",
        )

    api.answers["ProjectService.ListProjects"] = page
    with Connection(api.address, api.ca_pem) as connection:
        method = connection.stub(ProjectServiceStub).ListProjects
        request = project_service_pb2.ListProjectsRequest()
        found = [each.name for each in all_pages(connection, method, request, "projects")]
    assert found == ["projects/p0", "projects/p1", "projects/p2"]
    assert {call.request.page_size for call in api.calls} == {PAGE_SIZE}


def test_health_says_yes_or_raises(api: FakeApi) -> None:
    check(api.address, api.ca_pem)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        check("127.0.0.1:1", api.ca_pem, timeout=5)
