import datetime

from appliance.api.common.v1 import access_pb2 as _access_pb2
from appliance.api.jobs.v1 import job_pb2 as _job_pb2
from appliance.api.nodes.v1 import node_pb2 as _node_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ConnectRequest(_message.Message):
    __slots__ = ("hello", "heartbeat", "job_progress", "checkpoint", "job_ended", "replica_changed")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    JOB_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    JOB_ENDED_FIELD_NUMBER: _ClassVar[int]
    REPLICA_CHANGED_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: AgentHeartbeat
    job_progress: JobProgress
    checkpoint: CheckpointComplete
    job_ended: JobEnded
    replica_changed: ReplicaChanged
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[AgentHeartbeat, _Mapping]] = ..., job_progress: _Optional[_Union[JobProgress, _Mapping]] = ..., checkpoint: _Optional[_Union[CheckpointComplete, _Mapping]] = ..., job_ended: _Optional[_Union[JobEnded, _Mapping]] = ..., replica_changed: _Optional[_Union[ReplicaChanged, _Mapping]] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("number", "job_progress", "checkpoint", "job_ended", "replica_changed")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    JOB_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    JOB_ENDED_FIELD_NUMBER: _ClassVar[int]
    REPLICA_CHANGED_FIELD_NUMBER: _ClassVar[int]
    number: int
    job_progress: JobProgress
    checkpoint: CheckpointComplete
    job_ended: JobEnded
    replica_changed: ReplicaChanged
    def __init__(self, number: _Optional[int] = ..., job_progress: _Optional[_Union[JobProgress, _Mapping]] = ..., checkpoint: _Optional[_Union[CheckpointComplete, _Mapping]] = ..., job_ended: _Optional[_Union[JobEnded, _Mapping]] = ..., replica_changed: _Optional[_Union[ReplicaChanged, _Mapping]] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("devices", "device_kind", "memory_bytes", "address", "agent_version", "running", "capabilities", "free_ports", "sends_logs")
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    FREE_PORTS_FIELD_NUMBER: _ClassVar[int]
    SENDS_LOGS_FIELD_NUMBER: _ClassVar[int]
    devices: int
    device_kind: str
    memory_bytes: int
    address: str
    agent_version: str
    running: _containers.RepeatedCompositeFieldContainer[WorkEpoch]
    capabilities: _containers.RepeatedCompositeFieldContainer[_node_pb2.Capability]
    free_ports: _containers.RepeatedScalarFieldContainer[int]
    sends_logs: bool
    def __init__(self, devices: _Optional[int] = ..., device_kind: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., address: _Optional[str] = ..., agent_version: _Optional[str] = ..., running: _Optional[_Iterable[_Union[WorkEpoch, _Mapping]]] = ..., capabilities: _Optional[_Iterable[_Union[_node_pb2.Capability, _Mapping]]] = ..., free_ports: _Optional[_Iterable[int]] = ..., sends_logs: _Optional[bool] = ...) -> None: ...

class WorkEpoch(_message.Message):
    __slots__ = ("work", "epoch")
    WORK_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    work: str
    epoch: int
    def __init__(self, work: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class AgentHeartbeat(_message.Message):
    __slots__ = ("running", "sequence", "free_ports")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FREE_PORTS_FIELD_NUMBER: _ClassVar[int]
    running: _containers.RepeatedCompositeFieldContainer[WorkEpoch]
    sequence: int
    free_ports: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, running: _Optional[_Iterable[_Union[WorkEpoch, _Mapping]]] = ..., sequence: _Optional[int] = ..., free_ports: _Optional[_Iterable[int]] = ...) -> None: ...

class JobProgress(_message.Message):
    __slots__ = ("work", "progress", "restarts", "event", "measured")
    WORK_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    work: WorkEpoch
    progress: _job_pb2.Progress
    restarts: int
    event: str
    measured: _containers.RepeatedCompositeFieldContainer[_job_pb2.JobMetric]
    def __init__(self, work: _Optional[_Union[WorkEpoch, _Mapping]] = ..., progress: _Optional[_Union[_job_pb2.Progress, _Mapping]] = ..., restarts: _Optional[int] = ..., event: _Optional[str] = ..., measured: _Optional[_Iterable[_Union[_job_pb2.JobMetric, _Mapping]]] = ...) -> None: ...

class CheckpointComplete(_message.Message):
    __slots__ = ("work", "step", "manifest_digest")
    WORK_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    work: WorkEpoch
    step: int
    manifest_digest: str
    def __init__(self, work: _Optional[_Union[WorkEpoch, _Mapping]] = ..., step: _Optional[int] = ..., manifest_digest: _Optional[str] = ...) -> None: ...

class JobEnded(_message.Message):
    __slots__ = ("work", "succeeded", "reason", "message", "outputs", "result", "log", "log_cut")
    WORK_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    LOG_CUT_FIELD_NUMBER: _ClassVar[int]
    work: WorkEpoch
    succeeded: bool
    reason: str
    message: str
    outputs: _containers.RepeatedCompositeFieldContainer[OutputComplete]
    result: _job_pb2.JobResult
    log: str
    log_cut: bool
    def __init__(self, work: _Optional[_Union[WorkEpoch, _Mapping]] = ..., succeeded: _Optional[bool] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., outputs: _Optional[_Iterable[_Union[OutputComplete, _Mapping]]] = ..., result: _Optional[_Union[_job_pb2.JobResult, _Mapping]] = ..., log: _Optional[str] = ..., log_cut: _Optional[bool] = ...) -> None: ...

class OutputComplete(_message.Message):
    __slots__ = ("slot", "manifest_digest", "facts")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    slot: str
    manifest_digest: str
    facts: str
    def __init__(self, slot: _Optional[str] = ..., manifest_digest: _Optional[str] = ..., facts: _Optional[str] = ...) -> None: ...

class ReplicaChanged(_message.Message):
    __slots__ = ("work", "ready", "ended", "address", "message")
    WORK_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    work: WorkEpoch
    ready: bool
    ended: bool
    address: str
    message: str
    def __init__(self, work: _Optional[_Union[WorkEpoch, _Mapping]] = ..., ready: _Optional[bool] = ..., ended: _Optional[bool] = ..., address: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class ConnectResponse(_message.Message):
    __slots__ = ("start_job", "start_replica", "stop", "leases", "read_log")
    START_JOB_FIELD_NUMBER: _ClassVar[int]
    START_REPLICA_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    READ_LOG_FIELD_NUMBER: _ClassVar[int]
    start_job: StartJob
    start_replica: StartReplica
    stop: StopWork
    leases: Leases
    read_log: ReadLog
    def __init__(self, start_job: _Optional[_Union[StartJob, _Mapping]] = ..., start_replica: _Optional[_Union[StartReplica, _Mapping]] = ..., stop: _Optional[_Union[StopWork, _Mapping]] = ..., leases: _Optional[_Union[Leases, _Mapping]] = ..., read_log: _Optional[_Union[ReadLog, _Mapping]] = ...) -> None: ...

class ReadLog(_message.Message):
    __slots__ = ("work", "read", "after", "max_bytes")
    WORK_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    work: WorkEpoch
    read: str
    after: int
    max_bytes: int
    def __init__(self, work: _Optional[_Union[WorkEpoch, _Mapping]] = ..., read: _Optional[str] = ..., after: _Optional[int] = ..., max_bytes: _Optional[int] = ...) -> None: ...

class SendLogRequest(_message.Message):
    __slots__ = ("read", "lines", "state")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[SendLogRequest.State]
        STATE_CAUGHT_UP: _ClassVar[SendLogRequest.State]
        STATE_ENDED: _ClassVar[SendLogRequest.State]
        STATE_NOT_KEPT: _ClassVar[SendLogRequest.State]
    STATE_UNSPECIFIED: SendLogRequest.State
    STATE_CAUGHT_UP: SendLogRequest.State
    STATE_ENDED: SendLogRequest.State
    STATE_NOT_KEPT: SendLogRequest.State
    READ_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    read: str
    lines: _containers.RepeatedCompositeFieldContainer[LogLine]
    state: SendLogRequest.State
    def __init__(self, read: _Optional[str] = ..., lines: _Optional[_Iterable[_Union[LogLine, _Mapping]]] = ..., state: _Optional[_Union[SendLogRequest.State, str]] = ...) -> None: ...

class LogLine(_message.Message):
    __slots__ = ("number", "rank", "create_time", "text")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    number: int
    rank: int
    create_time: _timestamp_pb2.Timestamp
    text: str
    def __init__(self, number: _Optional[int] = ..., rank: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., text: _Optional[str] = ...) -> None: ...

class SendLogResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StartJob(_message.Message):
    __slots__ = ("work", "job", "rank_base", "local_ranks", "world_size", "node_count", "node_rank", "devices", "rendezvous", "memory_bytes")
    WORK_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    RANK_BASE_FIELD_NUMBER: _ClassVar[int]
    LOCAL_RANKS_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    NODE_COUNT_FIELD_NUMBER: _ClassVar[int]
    NODE_RANK_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    RENDEZVOUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    work: WorkEpoch
    job: _job_pb2.Job
    rank_base: int
    local_ranks: int
    world_size: int
    node_count: int
    node_rank: int
    devices: _containers.RepeatedScalarFieldContainer[int]
    rendezvous: str
    memory_bytes: int
    def __init__(self, work: _Optional[_Union[WorkEpoch, _Mapping]] = ..., job: _Optional[_Union[_job_pb2.Job, _Mapping]] = ..., rank_base: _Optional[int] = ..., local_ranks: _Optional[int] = ..., world_size: _Optional[int] = ..., node_count: _Optional[int] = ..., node_rank: _Optional[int] = ..., devices: _Optional[_Iterable[int]] = ..., rendezvous: _Optional[str] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class StartReplica(_message.Message):
    __slots__ = ("work", "endpoint", "devices", "max_sequence_length", "cache_bytes")
    WORK_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    work: WorkEpoch
    endpoint: str
    devices: _containers.RepeatedScalarFieldContainer[int]
    max_sequence_length: int
    cache_bytes: int
    def __init__(self, work: _Optional[_Union[WorkEpoch, _Mapping]] = ..., endpoint: _Optional[str] = ..., devices: _Optional[_Iterable[int]] = ..., max_sequence_length: _Optional[int] = ..., cache_bytes: _Optional[int] = ...) -> None: ...

class StopWork(_message.Message):
    __slots__ = ("work", "grace_seconds", "save")
    WORK_FIELD_NUMBER: _ClassVar[int]
    GRACE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SAVE_FIELD_NUMBER: _ClassVar[int]
    work: WorkEpoch
    grace_seconds: float
    save: bool
    def __init__(self, work: _Optional[_Union[WorkEpoch, _Mapping]] = ..., grace_seconds: _Optional[float] = ..., save: _Optional[bool] = ...) -> None: ...

class Leases(_message.Message):
    __slots__ = ("work", "seconds", "sequence", "gateways")
    WORK_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    GATEWAYS_FIELD_NUMBER: _ClassVar[int]
    work: _containers.RepeatedCompositeFieldContainer[WorkEpoch]
    seconds: float
    sequence: int
    gateways: GatewayCertificates
    def __init__(self, work: _Optional[_Iterable[_Union[WorkEpoch, _Mapping]]] = ..., seconds: _Optional[float] = ..., sequence: _Optional[int] = ..., gateways: _Optional[_Union[GatewayCertificates, _Mapping]] = ...) -> None: ...

class GatewayCertificates(_message.Message):
    __slots__ = ("serials", "as_of")
    SERIALS_FIELD_NUMBER: _ClassVar[int]
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    serials: _containers.RepeatedScalarFieldContainer[str]
    as_of: _timestamp_pb2.Timestamp
    def __init__(self, serials: _Optional[_Iterable[str]] = ..., as_of: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ReleaseKeysRequest(_message.Message):
    __slots__ = ("work", "certificate_request")
    WORK_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    work: WorkEpoch
    certificate_request: str
    def __init__(self, work: _Optional[_Union[WorkEpoch, _Mapping]] = ..., certificate_request: _Optional[str] = ...) -> None: ...

class ReleaseKeysResponse(_message.Message):
    __slots__ = ("inputs", "outputs", "resume_step", "resume_digest", "certificate", "resume_epoch")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    RESUME_STEP_FIELD_NUMBER: _ClassVar[int]
    RESUME_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    RESUME_EPOCH_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[ArtifactKey]
    outputs: _containers.RepeatedCompositeFieldContainer[ArtifactKey]
    resume_step: int
    resume_digest: str
    certificate: str
    resume_epoch: int
    def __init__(self, inputs: _Optional[_Iterable[_Union[ArtifactKey, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[ArtifactKey, _Mapping]]] = ..., resume_step: _Optional[int] = ..., resume_digest: _Optional[str] = ..., certificate: _Optional[str] = ..., resume_epoch: _Optional[int] = ...) -> None: ...

class ArtifactKey(_message.Message):
    __slots__ = ("name", "kind", "folder", "object", "project", "key", "manifest_digest", "slot")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    folder: str
    object: str
    project: str
    key: bytes
    manifest_digest: str
    slot: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., folder: _Optional[str] = ..., object: _Optional[str] = ..., project: _Optional[str] = ..., key: _Optional[bytes] = ..., manifest_digest: _Optional[str] = ..., slot: _Optional[str] = ...) -> None: ...

class RenewCertificateRequest(_message.Message):
    __slots__ = ("certificate_request",)
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    certificate_request: str
    def __init__(self, certificate_request: _Optional[str] = ...) -> None: ...

class RenewCertificateResponse(_message.Message):
    __slots__ = ("certificate",)
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    def __init__(self, certificate: _Optional[str] = ...) -> None: ...
