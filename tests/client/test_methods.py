from typing import Any

import pytest

from appliance.client.methods import find
from appliance.core.errors import InvalidInput


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


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"job": {"prepare": {"seed": 10**19}}}, "seed must be -9,223,372,036,854,775,808 to"),
        ({"job": {"prepare": {"vocabulary_size": 1 << 31}}}, "vocabulary_size must be"),
        ({"job_id": "half \udc80"}, "job_id is not UTF-8"),
        ({"job": {"prepare": {"datasets": ["half \ud800"]}}}, "datasets is not UTF-8"),
        ({"job": {"quantize": {"scheme": "SCHEME_W1"}}}, "scheme must be one of SCHEME_UNSP"),
        ({"job": {"result": {"dropped": {"a": 1 << 63}}}}, "dropped must be"),
        ({"job": {"result": {"dropped": {"\ud800": 1}}}}, "dropped is not UTF-8"),
    ],
)
def test_what_a_field_cannot_hold_is_refused_by_its_name(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        find("JobService.CreateJob").filled(**fields)
