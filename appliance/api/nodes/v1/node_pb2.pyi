import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Node(_message.Message):
    __slots__ = ("name", "state", "devices", "devices_used", "device_kind", "memory_bytes", "memory_used_bytes", "address", "agent_version", "create_time", "seen_time", "capabilities", "cordoned", "draining", "cordon_reason", "cordoned_by", "cordon_time", "drain_grace_seconds", "work", "certificate_expire_time", "etag")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Node.State]
        STATE_READY: _ClassVar[Node.State]
        STATE_LOST: _ClassVar[Node.State]
        STATE_EVICTED: _ClassVar[Node.State]
    STATE_UNSPECIFIED: Node.State
    STATE_READY: Node.State
    STATE_LOST: Node.State
    STATE_EVICTED: Node.State
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    DEVICES_USED_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    SEEN_TIME_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    CORDONED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    CORDON_REASON_FIELD_NUMBER: _ClassVar[int]
    CORDONED_BY_FIELD_NUMBER: _ClassVar[int]
    CORDON_TIME_FIELD_NUMBER: _ClassVar[int]
    DRAIN_GRACE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: Node.State
    devices: int
    devices_used: int
    device_kind: str
    memory_bytes: int
    memory_used_bytes: int
    address: str
    agent_version: str
    create_time: _timestamp_pb2.Timestamp
    seen_time: _timestamp_pb2.Timestamp
    capabilities: _containers.RepeatedCompositeFieldContainer[Capability]
    cordoned: bool
    draining: bool
    cordon_reason: str
    cordoned_by: str
    cordon_time: _timestamp_pb2.Timestamp
    drain_grace_seconds: int
    work: _containers.RepeatedCompositeFieldContainer[NodeWork]
    certificate_expire_time: _timestamp_pb2.Timestamp
    etag: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[Node.State, str]] = ..., devices: _Optional[int] = ..., devices_used: _Optional[int] = ..., device_kind: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ..., address: _Optional[str] = ..., agent_version: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., seen_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., capabilities: _Optional[_Iterable[_Union[Capability, _Mapping]]] = ..., cordoned: _Optional[bool] = ..., draining: _Optional[bool] = ..., cordon_reason: _Optional[str] = ..., cordoned_by: _Optional[str] = ..., cordon_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., drain_grace_seconds: _Optional[int] = ..., work: _Optional[_Iterable[_Union[NodeWork, _Mapping]]] = ..., certificate_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., etag: _Optional[str] = ...) -> None: ...

class NodeWork(_message.Message):
    __slots__ = ("name", "kind", "state", "devices", "memory_bytes", "note")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    state: str
    devices: _containers.RepeatedScalarFieldContainer[int]
    memory_bytes: int
    note: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., state: _Optional[str] = ..., devices: _Optional[_Iterable[int]] = ..., memory_bytes: _Optional[int] = ..., note: _Optional[str] = ...) -> None: ...

class Capability(_message.Message):
    __slots__ = ("kind", "available", "reason")
    KIND_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    kind: str
    available: bool
    reason: str
    def __init__(self, kind: _Optional[str] = ..., available: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...
