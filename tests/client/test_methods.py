import pytest

from appliance.client.methods import find


def test_a_method_is_found_with_its_rule() -> None:
    method = find("JobService.CreateJob")
    assert method.rule.method == "/appliance.api.jobs.v1.JobService/CreateJob"
    assert method.rule.permission == "jobs.create"
    assert method.request(job_id="x").job_id == "x"
    assert method.short == "CreateJob"


@pytest.mark.parametrize("name", ["JobService.Nothing", "Nothing.CreateJob", ""])
def test_an_unknown_one_is_an_error(name: str) -> None:
    with pytest.raises(KeyError):
        find(name)
