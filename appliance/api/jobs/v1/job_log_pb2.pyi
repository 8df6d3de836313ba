import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
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
