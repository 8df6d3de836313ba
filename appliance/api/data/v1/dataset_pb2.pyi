import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Dataset(_message.Message):
    __slots__ = ("name", "description", "create_time", "latest_version", "etag")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    LATEST_VERSION_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    create_time: _timestamp_pb2.Timestamp
    latest_version: str
    etag: str
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., latest_version: _Optional[str] = ..., etag: _Optional[str] = ...) -> None: ...

class DatasetVersion(_message.Message):
    __slots__ = ("name", "uid", "kind", "size_bytes", "documents", "tokens", "manifest_digest", "creator", "job", "inputs", "create_time", "tokenizer", "job_uid", "input_uids")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[DatasetVersion.Kind]
        KIND_TEXT: _ClassVar[DatasetVersion.Kind]
        KIND_TOKENS: _ClassVar[DatasetVersion.Kind]
    KIND_UNSPECIFIED: DatasetVersion.Kind
    KIND_TEXT: DatasetVersion.Kind
    KIND_TOKENS: DatasetVersion.Kind
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CREATOR_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    JOB_UID_FIELD_NUMBER: _ClassVar[int]
    INPUT_UIDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    uid: str
    kind: DatasetVersion.Kind
    size_bytes: int
    documents: int
    tokens: int
    manifest_digest: str
    creator: str
    job: str
    inputs: _containers.RepeatedScalarFieldContainer[str]
    create_time: _timestamp_pb2.Timestamp
    tokenizer: str
    job_uid: str
    input_uids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[str] = ..., kind: _Optional[_Union[DatasetVersion.Kind, str]] = ..., size_bytes: _Optional[int] = ..., documents: _Optional[int] = ..., tokens: _Optional[int] = ..., manifest_digest: _Optional[str] = ..., creator: _Optional[str] = ..., job: _Optional[str] = ..., inputs: _Optional[_Iterable[str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tokenizer: _Optional[str] = ..., job_uid: _Optional[str] = ..., input_uids: _Optional[_Iterable[str]] = ...) -> None: ...

class PrepareReport(_message.Message):
    __slots__ = ("documents", "kept", "tokens", "steps", "redactions", "vocabulary_size", "scripts")
    class RedactionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class ScriptsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: PrepareScript
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[PrepareScript, _Mapping]] = ...) -> None: ...
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    REDACTIONS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    SCRIPTS_FIELD_NUMBER: _ClassVar[int]
    documents: int
    kept: int
    tokens: int
    steps: _containers.RepeatedCompositeFieldContainer[PrepareStep]
    redactions: _containers.ScalarMap[str, int]
    vocabulary_size: int
    scripts: _containers.MessageMap[str, PrepareScript]
    def __init__(self, documents: _Optional[int] = ..., kept: _Optional[int] = ..., tokens: _Optional[int] = ..., steps: _Optional[_Iterable[_Union[PrepareStep, _Mapping]]] = ..., redactions: _Optional[_Mapping[str, int]] = ..., vocabulary_size: _Optional[int] = ..., scripts: _Optional[_Mapping[str, PrepareScript]] = ...) -> None: ...

class PrepareScript(_message.Message):
    __slots__ = ("documents", "kept")
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    documents: int
    kept: int
    def __init__(self, documents: _Optional[int] = ..., kept: _Optional[int] = ...) -> None: ...

class PrepareStep(_message.Message):
    __slots__ = ("name", "documents_in", "documents_out", "dropped", "changed", "examples")
    class DroppedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_IN_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_OUT_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    name: str
    documents_in: int
    documents_out: int
    dropped: _containers.ScalarMap[str, int]
    changed: int
    examples: _containers.RepeatedCompositeFieldContainer[PrepareExample]
    def __init__(self, name: _Optional[str] = ..., documents_in: _Optional[int] = ..., documents_out: _Optional[int] = ..., dropped: _Optional[_Mapping[str, int]] = ..., changed: _Optional[int] = ..., examples: _Optional[_Iterable[_Union[PrepareExample, _Mapping]]] = ...) -> None: ...

class PrepareExample(_message.Message):
    __slots__ = ("document_id", "reason", "excerpt")
    DOCUMENT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXCERPT_FIELD_NUMBER: _ClassVar[int]
    document_id: str
    reason: str
    excerpt: str
    def __init__(self, document_id: _Optional[str] = ..., reason: _Optional[str] = ..., excerpt: _Optional[str] = ...) -> None: ...
