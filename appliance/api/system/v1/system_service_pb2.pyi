import datetime

from appliance.api.common.v1 import access_pb2 as _access_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetSystemRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetSystemResponse(_message.Message):
    __slots__ = ("version", "cluster_id", "policy_version", "gateway_address", "openai_base_url")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    OPENAI_BASE_URL_FIELD_NUMBER: _ClassVar[int]
    version: str
    cluster_id: str
    policy_version: int
    gateway_address: str
    openai_base_url: str
    def __init__(self, version: _Optional[str] = ..., cluster_id: _Optional[str] = ..., policy_version: _Optional[int] = ..., gateway_address: _Optional[str] = ..., openai_base_url: _Optional[str] = ...) -> None: ...

class ListPermissionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPermissionsResponse(_message.Message):
    __slots__ = ("methods",)
    METHODS_FIELD_NUMBER: _ClassVar[int]
    methods: _containers.RepeatedCompositeFieldContainer[MethodPermission]
    def __init__(self, methods: _Optional[_Iterable[_Union[MethodPermission, _Mapping]]] = ...) -> None: ...

class MethodPermission(_message.Message):
    __slots__ = ("method", "permission", "fresh_mfa", "anonymous", "summary")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PERMISSION_FIELD_NUMBER: _ClassVar[int]
    FRESH_MFA_FIELD_NUMBER: _ClassVar[int]
    ANONYMOUS_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    method: str
    permission: str
    fresh_mfa: bool
    anonymous: bool
    summary: str
    def __init__(self, method: _Optional[str] = ..., permission: _Optional[str] = ..., fresh_mfa: _Optional[bool] = ..., anonymous: _Optional[bool] = ..., summary: _Optional[str] = ...) -> None: ...

class ListExpirationsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListExpirationsResponse(_message.Message):
    __slots__ = ("expirations",)
    EXPIRATIONS_FIELD_NUMBER: _ClassVar[int]
    expirations: _containers.RepeatedCompositeFieldContainer[Expiration]
    def __init__(self, expirations: _Optional[_Iterable[_Union[Expiration, _Mapping]]] = ...) -> None: ...

class Expiration(_message.Message):
    __slots__ = ("what", "expire_time", "advice")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    what: str
    expire_time: _timestamp_pb2.Timestamp
    advice: str
    def __init__(self, what: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., advice: _Optional[str] = ...) -> None: ...
