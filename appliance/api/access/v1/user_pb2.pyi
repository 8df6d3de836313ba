import datetime

from appliance.api.access.v1 import principal_details_pb2 as _principal_details_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class User(_message.Message):
    __slots__ = ("name", "locked", "totp_enrolled", "create_time", "must_change_password", "description", "etag", "details")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LOCKED_FIELD_NUMBER: _ClassVar[int]
    TOTP_ENROLLED_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    MUST_CHANGE_PASSWORD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    name: str
    locked: bool
    totp_enrolled: bool
    create_time: _timestamp_pb2.Timestamp
    must_change_password: bool
    description: str
    etag: str
    details: _principal_details_pb2.PrincipalDetails
    def __init__(self, name: _Optional[str] = ..., locked: _Optional[bool] = ..., totp_enrolled: _Optional[bool] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., must_change_password: _Optional[bool] = ..., description: _Optional[str] = ..., etag: _Optional[str] = ..., details: _Optional[_Union[_principal_details_pb2.PrincipalDetails, _Mapping]] = ...) -> None: ...
