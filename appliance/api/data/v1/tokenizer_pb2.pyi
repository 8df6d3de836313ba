import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tokenizer(_message.Message):
    __slots__ = ("name", "uid", "vocabulary_size", "job", "manifest_digest", "create_time", "job_uid")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    JOB_UID_FIELD_NUMBER: _ClassVar[int]
    name: str
    uid: str
    vocabulary_size: int
    job: str
    manifest_digest: str
    create_time: _timestamp_pb2.Timestamp
    job_uid: str
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[str] = ..., vocabulary_size: _Optional[int] = ..., job: _Optional[str] = ..., manifest_digest: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., job_uid: _Optional[str] = ...) -> None: ...
