import datetime

from appliance.api.data.v1 import dataset_service_pb2 as _dataset_service_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Upload(_message.Message):
    __slots__ = ("name", "artifact", "state", "files", "part_bytes", "parts", "size_bytes", "creator", "create_time", "expire_time", "version", "message")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Upload.State]
        STATE_OPEN: _ClassVar[Upload.State]
        STATE_COMMITTING: _ClassVar[Upload.State]
        STATE_COMMITTED: _ClassVar[Upload.State]
        STATE_FAILED: _ClassVar[Upload.State]
    STATE_UNSPECIFIED: Upload.State
    STATE_OPEN: Upload.State
    STATE_COMMITTING: Upload.State
    STATE_COMMITTED: Upload.State
    STATE_FAILED: Upload.State
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    PART_BYTES_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATOR_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    artifact: str
    state: Upload.State
    files: _containers.RepeatedCompositeFieldContainer[UploadFile]
    part_bytes: int
    parts: int
    size_bytes: int
    creator: str
    create_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    version: str
    message: str
    def __init__(self, name: _Optional[str] = ..., artifact: _Optional[str] = ..., state: _Optional[_Union[Upload.State, str]] = ..., files: _Optional[_Iterable[_Union[UploadFile, _Mapping]]] = ..., part_bytes: _Optional[int] = ..., parts: _Optional[int] = ..., size_bytes: _Optional[int] = ..., creator: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., version: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class UploadFile(_message.Message):
    __slots__ = ("file", "size_bytes")
    FILE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    file: str
    size_bytes: int
    def __init__(self, file: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class UploadedPart(_message.Message):
    __slots__ = ("number", "sha256", "size_bytes")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    number: int
    sha256: str
    size_bytes: int
    def __init__(self, number: _Optional[int] = ..., sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class DocumentBatch(_message.Message):
    __slots__ = ("documents",)
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    documents: _containers.RepeatedCompositeFieldContainer[_dataset_service_pb2.Document]
    def __init__(self, documents: _Optional[_Iterable[_Union[_dataset_service_pb2.Document, _Mapping]]] = ...) -> None: ...
