import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Report(_message.Message):
    __slots__ = ("name", "uid", "title", "job", "inputs", "pictures", "size_bytes", "manifest_digest", "creator", "create_time", "content", "job_uid", "input_uids")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CREATOR_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    JOB_UID_FIELD_NUMBER: _ClassVar[int]
    INPUT_UIDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    uid: str
    title: str
    job: str
    inputs: _containers.RepeatedScalarFieldContainer[str]
    pictures: int
    size_bytes: int
    manifest_digest: str
    creator: str
    create_time: _timestamp_pb2.Timestamp
    content: ReportContent
    job_uid: str
    input_uids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[str] = ..., title: _Optional[str] = ..., job: _Optional[str] = ..., inputs: _Optional[_Iterable[str]] = ..., pictures: _Optional[int] = ..., size_bytes: _Optional[int] = ..., manifest_digest: _Optional[str] = ..., creator: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., content: _Optional[_Union[ReportContent, _Mapping]] = ..., job_uid: _Optional[str] = ..., input_uids: _Optional[_Iterable[str]] = ...) -> None: ...

class ReportContent(_message.Message):
    __slots__ = ("title", "sections")
    TITLE_FIELD_NUMBER: _ClassVar[int]
    SECTIONS_FIELD_NUMBER: _ClassVar[int]
    title: str
    sections: _containers.RepeatedCompositeFieldContainer[ReportSection]
    def __init__(self, title: _Optional[str] = ..., sections: _Optional[_Iterable[_Union[ReportSection, _Mapping]]] = ...) -> None: ...

class ReportSection(_message.Message):
    __slots__ = ("heading", "text", "numbers", "tables", "pictures")
    HEADING_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    heading: str
    text: str
    numbers: _containers.RepeatedCompositeFieldContainer[ReportNumber]
    tables: _containers.RepeatedCompositeFieldContainer[ReportTable]
    pictures: _containers.RepeatedCompositeFieldContainer[ReportPicture]
    def __init__(self, heading: _Optional[str] = ..., text: _Optional[str] = ..., numbers: _Optional[_Iterable[_Union[ReportNumber, _Mapping]]] = ..., tables: _Optional[_Iterable[_Union[ReportTable, _Mapping]]] = ..., pictures: _Optional[_Iterable[_Union[ReportPicture, _Mapping]]] = ...) -> None: ...

class ReportNumber(_message.Message):
    __slots__ = ("name", "value", "unit")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    unit: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., unit: _Optional[str] = ...) -> None: ...

class ReportTable(_message.Message):
    __slots__ = ("caption", "columns", "rows")
    CAPTION_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    caption: str
    columns: _containers.RepeatedScalarFieldContainer[str]
    rows: _containers.RepeatedCompositeFieldContainer[ReportRow]
    def __init__(self, caption: _Optional[str] = ..., columns: _Optional[_Iterable[str]] = ..., rows: _Optional[_Iterable[_Union[ReportRow, _Mapping]]] = ...) -> None: ...

class ReportRow(_message.Message):
    __slots__ = ("cells",)
    CELLS_FIELD_NUMBER: _ClassVar[int]
    cells: _containers.RepeatedCompositeFieldContainer[ReportCell]
    def __init__(self, cells: _Optional[_Iterable[_Union[ReportCell, _Mapping]]] = ...) -> None: ...

class ReportCell(_message.Message):
    __slots__ = ("text", "number")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    text: str
    number: float
    def __init__(self, text: _Optional[str] = ..., number: _Optional[float] = ...) -> None: ...

class ReportPicture(_message.Message):
    __slots__ = ("file", "caption")
    FILE_FIELD_NUMBER: _ClassVar[int]
    CAPTION_FIELD_NUMBER: _ClassVar[int]
    file: str
    caption: str
    def __init__(self, file: _Optional[str] = ..., caption: _Optional[str] = ...) -> None: ...
