from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor
ACCESS_FIELD_NUMBER: _ClassVar[int]
access: _descriptor.FieldDescriptor

class Access(_message.Message):
    __slots__ = ("permission", "fresh_mfa", "anonymous", "resource", "self", "asked", "made", "unfinished", "granted")
    PERMISSION_FIELD_NUMBER: _ClassVar[int]
    FRESH_MFA_FIELD_NUMBER: _ClassVar[int]
    ANONYMOUS_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    SELF_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    MADE_FIELD_NUMBER: _ClassVar[int]
    UNFINISHED_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    permission: str
    fresh_mfa: bool
    anonymous: bool
    resource: str
    self: bool
    asked: _containers.RepeatedScalarFieldContainer[str]
    made: _containers.RepeatedScalarFieldContainer[str]
    unfinished: bool
    granted: bool
    def __init__(self_, permission: _Optional[str] = ..., fresh_mfa: _Optional[bool] = ..., anonymous: _Optional[bool] = ..., resource: _Optional[str] = ..., self: _Optional[bool] = ..., asked: _Optional[_Iterable[str]] = ..., made: _Optional[_Iterable[str]] = ..., unfinished: _Optional[bool] = ..., granted: _Optional[bool] = ...) -> None: ...
