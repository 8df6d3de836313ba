"""Resource names: one table of patterns, one parser, one formatter (Google AIP-122).

Rules kept here:
* a name that is not in `PATTERNS` does not parse, so no code can invent a kind of resource by
  splitting strings;
* an id has no `/`, no `:`, no dot, no capital letter and no non-ASCII character: it is safe as a
  folder, as a part of a policy subject and in a log line;
* `check_id` is for the id a caller chooses for something new and is stricter than what parsing
  accepts, because the system itself also makes ids that start with a digit (`bindings/7f3a…`).

The attack: a crafted name such as `projects/a/../b` or `projects/b` smuggled into an id, to be
judged by the policy as one project and stored as another.

Called by the gate, every service and the command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from appliance.core.errors import InvalidInput

PATTERNS: dict[str, str] = {
    "user": "users/{user}",
    "serviceAccount": "serviceAccounts/{service_account}",
    "role": "roles/{role}",
    "binding": "bindings/{binding}",
    "node": "nodes/{node}",
    "gateway": "gateways/{gateway}",
    "project": "projects/{project}",
    "dataset": "projects/{project}/datasets/{dataset}",
    "datasetVersion": "projects/{project}/datasets/{dataset}/versions/{version}",
    "upload": "projects/{project}/uploads/{upload}",
    "tokenizer": "projects/{project}/tokenizers/{tokenizer}",
    "report": "projects/{project}/reports/{report}",
    "tombstone": "projects/{project}/tombstones/{tombstone}",
    "model": "projects/{project}/models/{model}",
    "modelVersion": "projects/{project}/models/{model}/versions/{version}",
    "job": "projects/{project}/jobs/{job}",
    "checkpoint": "projects/{project}/jobs/{job}/checkpoints/{checkpoint}",
    "endpoint": "projects/{project}/endpoints/{endpoint}",
    "replica": "projects/{project}/endpoints/{endpoint}/replicas/{replica}",
}

_NEW_ID = re.compile(r"[a-z][a-z0-9-]{1,62}")
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_NUMBERED = frozenset({"version"})
_SHOWN = 80
MAX_ID = 63
ACCOUNT_MARK = "--"


def shown(text: str) -> str:
    """Text from outside, quoted for a message.

    At most 80 characters, escapes instead of control characters.
    """
    return ascii(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def is_id(text: str) -> bool:
    """Whether `text` can be an id in an existing name."""
    return _ID.fullmatch(text) is not None


def check_id(text: str, field: str) -> str:
    """Return `text` if it may be the id of something new.

    Raise InvalidInput naming `field` otherwise.
    """
    if _NEW_ID.fullmatch(text) is None:
        wrong = (
            f"{shown(text)} is not an id: use 2 to 63 of a-z, 0-9 and '-', starting with a letter"
        )
        raise InvalidInput(f"{field}: {wrong}", fields={field: wrong})
    return text


def _fits(variable: str, value: str) -> bool:
    pattern = _NUMBER if variable in _NUMBERED else _ID
    return pattern.fullmatch(value) is not None


def _match(pattern: str, segments: list[str]) -> tuple[str, ...] | None:
    """The values of a pattern's variables in `segments`, or None when they do not fit."""
    parts = pattern.split("/")
    if len(parts) != len(segments):
        return None
    values: list[str] = []
    for part, segment in zip(parts, segments, strict=True):
        if not part.startswith("{"):
            if part != segment:
                return None
        elif _fits(part[1:-1], segment):
            values.append(segment)
        else:
            return None
    return tuple(values)


@dataclass(frozen=True)
class Name:
    """A parsed resource name.

    Which kind (a key of `PATTERNS`) and the ids in it, outermost first.
    """

    kind: str
    ids: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, *kinds: str, field: str = "name") -> Name:
        """Parse a name; with `kinds`, only these. Raises InvalidInput naming `field`."""
        segments = text.split("/")
        for kind in kinds or PATTERNS:
            ids = _match(PATTERNS[kind], segments)
            if ids is not None:
                return cls(kind, ids)
        formats = " or ".join(PATTERNS[kind] for kind in kinds) or "a resource name"
        wrong = f"{shown(text)} is not {formats}"
        raise InvalidInput(f"{field}: {wrong}", fields={field: wrong})

    @classmethod
    def of(cls, kind: str, *ids: str) -> Name:
        """Build a name of a kind from its ids, outermost first.

        Raises InvalidInput for an id that cannot be one.
        """
        if len(ids) != len(_variables(kind)):
            raise InvalidInput(
                f"{PATTERNS[kind]} takes {len(_variables(kind))} ids, not {len(ids)}"
            )
        return cls.parse(str(cls(kind, ids)), kind)

    @property
    def id(self) -> str:
        """The last id: what the resource is called inside its parent."""
        return self.ids[-1]

    @property
    def project(self) -> str | None:
        """Id of the project the resource is in; None for resources of the whole appliance."""
        return self.ids[0] if PATTERNS[self.kind].startswith("projects/") else None

    @property
    def parent(self) -> Name | None:
        """The name without its last collection and id; None at the top."""
        head = str(self).rsplit("/", 2)[0]
        return Name.parse(head) if len(self.ids) > 1 else None

    def __getitem__(self, variable: str) -> str:
        """The id of a variable of the pattern, such as `name["dataset"]`.

        KeyError if it has no such variable.
        """
        return dict(zip(_variables(self.kind), self.ids, strict=True))[variable]

    def __str__(self) -> str:
        """The name as it is written in a request."""
        values = iter(self.ids)
        return "/".join(
            next(values) if part.startswith("{") else part
            for part in PATTERNS[self.kind].split("/")
        )


def _variables(kind: str) -> list[str]:
    return [part[1:-1] for part in PATTERNS[kind].split("/") if part.startswith("{")]


def user(user_id: str) -> str:
    """`users/{user}`."""
    return str(Name.of("user", user_id))


def service_account(account: str) -> str:
    """`serviceAccounts/{service_account}`."""
    return str(Name.of("serviceAccount", account))


def new_service_account_id(project_id: str, account: str) -> str:
    """Id of a new application: `demo--app`.

    Service accounts are called by their ids alone, all over the appliance. With the project in
    front, no two projects can want the same, so that nobody learns from a refusal what another
    project has. The last `--` ends the project: `account` holds none. Raises InvalidInput.
    """
    field = "service_account_id"
    short = check_id(account.removeprefix(f"{project_id}{ACCOUNT_MARK}"), field)
    if ACCOUNT_MARK in short:
        wrong = f"{shown(short)} holds {ACCOUNT_MARK}, which ends the project's part of the name"
        raise InvalidInput(f"{field}: {wrong}", fields={field: wrong})
    found = f"{project_id}{ACCOUNT_MARK}{short}"
    if len(found) > MAX_ID:
        wrong = f"is too long: {found} may have {MAX_ID} characters"
        raise InvalidInput(f"{field} {wrong}", fields={field: wrong})
    return found


def role(role_id: str) -> str:
    """`roles/{role}`."""
    return str(Name.of("role", role_id))


def binding(binding_id: str) -> str:
    """`bindings/{binding}`."""
    return str(Name.of("binding", binding_id))


def node(node_id: str) -> str:
    """`nodes/{node}`."""
    return str(Name.of("node", node_id))


def gateway(gateway_id: str) -> str:
    """`gateways/{gateway}`."""
    return str(Name.of("gateway", gateway_id))


def project(project_id: str) -> str:
    """`projects/{project}`."""
    return str(Name.of("project", project_id))


def dataset(project_id: str, dataset_id: str) -> str:
    """`projects/{project}/datasets/{dataset}`."""
    return str(Name.of("dataset", project_id, dataset_id))


def dataset_version(project_id: str, dataset_id: str, version: int | str) -> str:
    """`projects/{project}/datasets/{dataset}/versions/{version}`; versions count from 1."""
    return str(Name.of("datasetVersion", project_id, dataset_id, str(version)))


def upload(project_id: str, upload_id: str) -> str:
    """`projects/{project}/uploads/{upload}`."""
    return str(Name.of("upload", project_id, upload_id))


def tokenizer(project_id: str, tokenizer_id: str) -> str:
    """`projects/{project}/tokenizers/{tokenizer}`."""
    return str(Name.of("tokenizer", project_id, tokenizer_id))


def report(project_id: str, report_id: str) -> str:
    """`projects/{project}/reports/{report}`."""
    return str(Name.of("report", project_id, report_id))


def tombstone(project_id: str, uid: str) -> str:
    """`projects/{project}/tombstones/{tombstone}`."""
    return str(Name.of("tombstone", project_id, uid))


def model(project_id: str, model_id: str) -> str:
    """`projects/{project}/models/{model}`."""
    return str(Name.of("model", project_id, model_id))


def model_version(project_id: str, model_id: str, version: int | str) -> str:
    """`projects/{project}/models/{model}/versions/{version}`; versions count from 1."""
    return str(Name.of("modelVersion", project_id, model_id, str(version)))


def job(project_id: str, job_id: str) -> str:
    """`projects/{project}/jobs/{job}`."""
    return str(Name.of("job", project_id, job_id))


def checkpoint(project_id: str, job_id: str, checkpoint_id: str) -> str:
    """`projects/{project}/jobs/{job}/checkpoints/{checkpoint}`."""
    return str(Name.of("checkpoint", project_id, job_id, checkpoint_id))


def endpoint(project_id: str, endpoint_id: str) -> str:
    """`projects/{project}/endpoints/{endpoint}`."""
    return str(Name.of("endpoint", project_id, endpoint_id))


def replica(project_id: str, endpoint_id: str, replica_id: str) -> str:
    """`projects/{project}/endpoints/{endpoint}/replicas/{replica}`."""
    return str(Name.of("replica", project_id, endpoint_id, replica_id))
