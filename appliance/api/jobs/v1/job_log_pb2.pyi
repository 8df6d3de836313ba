import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobLogs(_message.Message):
    __slots__ = ("name", "epoch", "nodes", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    epoch: int
    nodes: _containers.RepeatedCompositeFieldContainer[NodeLog]
    reason: str
    def __init__(self, name: _Optional[str] = ..., epoch: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[NodeLog, _Mapping]]] = ..., reason: _Optional[str] = ...) -> None: ...

class NodeLog(_message.Message):
    __slots__ = ("node", "text", "cut", "receive_time")
    NODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    RECEIVE_TIME_FIELD_NUMBER: _ClassVar[int]
    node: str
    text: str
    cut: bool
    receive_time: _timestamp_pb2.Timestamp
    def __init__(self, node: _Optional[str] = ..., text: _Optional[str] = ..., cut: _Optional[bool] = ..., receive_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class JobLogLine(_message.Message):
    __slots__ = ("node", "epoch", "number", "rank", "create_time", "text")
    NODE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    node: str
    epoch: int
    number: int
    rank: int
    create_time: _timestamp_pb2.Timestamp
    text: str
    def __init__(self, node: _Optional[str] = ..., epoch: _Optional[int] = ..., number: _Optional[int] = ..., rank: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., text: _Optional[str] = ...) -> None: ...

class JobLogNotice(_message.Message):
    __slots__ = ("kind", "node", "epoch", "lines", "text", "ranks")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[JobLogNotice.Kind]
        KIND_START: _ClassVar[JobLogNotice.Kind]
        KIND_LEFT_OUT: _ClassVar[JobLogNotice.Kind]
        KIND_NODE_AWAY: _ClassVar[JobLogNotice.Kind]
        KIND_AGENT_TOO_OLD: _ClassVar[JobLogNotice.Kind]
        KIND_NOT_KEPT: _ClassVar[JobLogNotice.Kind]
        KIND_NO_START: _ClassVar[JobLogNotice.Kind]
    KIND_UNSPECIFIED: JobLogNotice.Kind
    KIND_START: JobLogNotice.Kind
    KIND_LEFT_OUT: JobLogNotice.Kind
    KIND_NODE_AWAY: JobLogNotice.Kind
    KIND_AGENT_TOO_OLD: JobLogNotice.Kind
    KIND_NOT_KEPT: JobLogNotice.Kind
    KIND_NO_START: JobLogNotice.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    kind: JobLogNotice.Kind
    node: str
    epoch: int
    lines: int
    text: str
    ranks: int
    def __init__(self, kind: _Optional[_Union[JobLogNotice.Kind, str]] = ..., node: _Optional[str] = ..., epoch: _Optional[int] = ..., lines: _Optional[int] = ..., text: _Optional[str] = ..., ranks: _Optional[int] = ...) -> None: ...

class JobLogPosition(_message.Message):
    __slots__ = ("node", "epoch", "number")
    NODE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    node: str
    epoch: int
    number: int
    def __init__(self, node: _Optional[str] = ..., epoch: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...
