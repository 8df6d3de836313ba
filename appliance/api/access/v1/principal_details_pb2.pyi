import datetime

from appliance.api.auth.v1 import auth_service_pb2 as _auth_service_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PrincipalDetails(_message.Message):
    __slots__ = ("roles", "sessions", "creations", "not_shown")
    ROLES_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    CREATIONS_FIELD_NUMBER: _ClassVar[int]
    NOT_SHOWN_FIELD_NUMBER: _ClassVar[int]
    roles: _containers.RepeatedScalarFieldContainer[str]
    sessions: _containers.RepeatedCompositeFieldContainer[_auth_service_pb2.Session]
    creations: _containers.RepeatedCompositeFieldContainer[Creation]
    not_shown: int
    def __init__(self, roles: _Optional[_Iterable[str]] = ..., sessions: _Optional[_Iterable[_Union[_auth_service_pb2.Session, _Mapping]]] = ..., creations: _Optional[_Iterable[_Union[Creation, _Mapping]]] = ..., not_shown: _Optional[int] = ...) -> None: ...

class Creation(_message.Message):
    __slots__ = ("what", "end_command", "create_time", "expire_time")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    END_COMMAND_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    what: str
    end_command: str
    create_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, what: _Optional[str] = ..., end_command: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
