import datetime

from appliance.api.common.v1 import value_pb2 as _value_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Endpoint(_message.Message):
    __slots__ = ("name", "uid", "model", "replicas", "tensor_parallel", "max_sequence_length", "cache_bytes", "state", "state_reason", "replica_status", "creator", "create_time", "etag", "allow_downtime", "generation")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Endpoint.State]
        STATE_STARTING: _ClassVar[Endpoint.State]
        STATE_READY: _ClassVar[Endpoint.State]
        STATE_DEGRADED: _ClassVar[Endpoint.State]
        STATE_STOPPING: _ClassVar[Endpoint.State]
        STATE_FAILED: _ClassVar[Endpoint.State]
        STATE_UPDATING: _ClassVar[Endpoint.State]
        STATE_STOPPED: _ClassVar[Endpoint.State]
    STATE_UNSPECIFIED: Endpoint.State
    STATE_STARTING: Endpoint.State
    STATE_READY: Endpoint.State
    STATE_DEGRADED: Endpoint.State
    STATE_STOPPING: Endpoint.State
    STATE_FAILED: Endpoint.State
    STATE_UPDATING: Endpoint.State
    STATE_STOPPED: Endpoint.State
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLEL_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_REASON_FIELD_NUMBER: _ClassVar[int]
    REPLICA_STATUS_FIELD_NUMBER: _ClassVar[int]
    CREATOR_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    ALLOW_DOWNTIME_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    uid: str
    model: str
    replicas: int
    tensor_parallel: int
    max_sequence_length: int
    cache_bytes: int
    state: Endpoint.State
    state_reason: str
    replica_status: _containers.RepeatedCompositeFieldContainer[Replica]
    creator: str
    create_time: _timestamp_pb2.Timestamp
    etag: str
    allow_downtime: bool
    generation: int
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[str] = ..., model: _Optional[str] = ..., replicas: _Optional[int] = ..., tensor_parallel: _Optional[int] = ..., max_sequence_length: _Optional[int] = ..., cache_bytes: _Optional[int] = ..., state: _Optional[_Union[Endpoint.State, str]] = ..., state_reason: _Optional[str] = ..., replica_status: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ..., creator: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., etag: _Optional[str] = ..., allow_downtime: _Optional[bool] = ..., generation: _Optional[int] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("id", "node", "state", "epoch", "address", "state_reason", "restarts", "server_name", "generation", "model", "model_uid", "max_sequence_length", "start_time")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Replica.State]
        STATE_PENDING: _ClassVar[Replica.State]
        STATE_STARTING: _ClassVar[Replica.State]
        STATE_READY: _ClassVar[Replica.State]
        STATE_DRAINING: _ClassVar[Replica.State]
        STATE_LOST: _ClassVar[Replica.State]
    STATE_UNSPECIFIED: Replica.State
    STATE_PENDING: Replica.State
    STATE_STARTING: Replica.State
    STATE_READY: Replica.State
    STATE_DRAINING: Replica.State
    STATE_LOST: Replica.State
    ID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_REASON_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    SERVER_NAME_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_UID_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    id: str
    node: str
    state: Replica.State
    epoch: int
    address: str
    state_reason: str
    restarts: int
    server_name: str
    generation: int
    model: str
    model_uid: str
    max_sequence_length: int
    start_time: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., node: _Optional[str] = ..., state: _Optional[_Union[Replica.State, str]] = ..., epoch: _Optional[int] = ..., address: _Optional[str] = ..., state_reason: _Optional[str] = ..., restarts: _Optional[int] = ..., server_name: _Optional[str] = ..., generation: _Optional[int] = ..., model: _Optional[str] = ..., model_uid: _Optional[str] = ..., max_sequence_length: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
