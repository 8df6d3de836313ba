import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobEvent(_message.Message):
    __slots__ = ("number", "create_time", "kind", "epoch", "actor", "message", "shares", "checkpoint_step", "outputs")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[JobEvent.Kind]
        KIND_CREATED: _ClassVar[JobEvent.Kind]
        KIND_WAITING: _ClassVar[JobEvent.Kind]
        KIND_STARTED: _ClassVar[JobEvent.Kind]
        KIND_RUNNING: _ClassVar[JobEvent.Kind]
        KIND_RANKS_RESTARTED: _ClassVar[JobEvent.Kind]
        KIND_STOPPED: _ClassVar[JobEvent.Kind]
        KIND_PAUSING: _ClassVar[JobEvent.Kind]
        KIND_PAUSED: _ClassVar[JobEvent.Kind]
        KIND_RESUMED: _ClassVar[JobEvent.Kind]
        KIND_REGISTERING: _ClassVar[JobEvent.Kind]
        KIND_SUCCEEDED: _ClassVar[JobEvent.Kind]
        KIND_FAILED: _ClassVar[JobEvent.Kind]
        KIND_CANCELLED: _ClassVar[JobEvent.Kind]
        KIND_UPDATED: _ClassVar[JobEvent.Kind]
    KIND_UNSPECIFIED: JobEvent.Kind
    KIND_CREATED: JobEvent.Kind
    KIND_WAITING: JobEvent.Kind
    KIND_STARTED: JobEvent.Kind
    KIND_RUNNING: JobEvent.Kind
    KIND_RANKS_RESTARTED: JobEvent.Kind
    KIND_STOPPED: JobEvent.Kind
    KIND_PAUSING: JobEvent.Kind
    KIND_PAUSED: JobEvent.Kind
    KIND_RESUMED: JobEvent.Kind
    KIND_REGISTERING: JobEvent.Kind
    KIND_SUCCEEDED: JobEvent.Kind
    KIND_FAILED: JobEvent.Kind
    KIND_CANCELLED: JobEvent.Kind
    KIND_UPDATED: JobEvent.Kind
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_STEP_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    number: int
    create_time: _timestamp_pb2.Timestamp
    kind: JobEvent.Kind
    epoch: int
    actor: str
    message: str
    shares: _containers.RepeatedCompositeFieldContainer[JobShare]
    checkpoint_step: int
    outputs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, number: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., kind: _Optional[_Union[JobEvent.Kind, str]] = ..., epoch: _Optional[int] = ..., actor: _Optional[str] = ..., message: _Optional[str] = ..., shares: _Optional[_Iterable[_Union[JobShare, _Mapping]]] = ..., checkpoint_step: _Optional[int] = ..., outputs: _Optional[_Iterable[str]] = ...) -> None: ...

class JobShare(_message.Message):
    __slots__ = ("node", "first_rank", "ranks", "devices")
    NODE_FIELD_NUMBER: _ClassVar[int]
    FIRST_RANK_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    node: str
    first_rank: int
    ranks: int
    devices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, node: _Optional[str] = ..., first_rank: _Optional[int] = ..., ranks: _Optional[int] = ..., devices: _Optional[_Iterable[int]] = ...) -> None: ...
