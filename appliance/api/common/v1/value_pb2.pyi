from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor
VALUE_FIELD_NUMBER: _ClassVar[int]
value: _descriptor.FieldDescriptor

class Value(_message.Message):
    __slots__ = ("default", "least", "most", "words", "help", "required", "otherwise", "names")
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    LEAST_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    HELP_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    OTHERWISE_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    default: float
    least: float
    most: float
    words: _containers.RepeatedScalarFieldContainer[str]
    help: str
    required: bool
    otherwise: str
    names: str
    def __init__(self, default: _Optional[float] = ..., least: _Optional[float] = ..., most: _Optional[float] = ..., words: _Optional[_Iterable[str]] = ..., help: _Optional[str] = ..., required: _Optional[bool] = ..., otherwise: _Optional[str] = ..., names: _Optional[str] = ...) -> None: ...
