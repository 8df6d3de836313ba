from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DownloadPart(_message.Message):
    __slots__ = ("listing", "data", "end")
    LISTING_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    listing: DownloadListing
    data: bytes
    end: DownloadedFile
    def __init__(self, listing: _Optional[_Union[DownloadListing, _Mapping]] = ..., data: _Optional[bytes] = ..., end: _Optional[_Union[DownloadedFile, _Mapping]] = ...) -> None: ...

class DownloadListing(_message.Message):
    __slots__ = ("name", "manifest_digest", "files")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    name: str
    manifest_digest: str
    files: _containers.RepeatedCompositeFieldContainer[DownloadedFile]
    def __init__(self, name: _Optional[str] = ..., manifest_digest: _Optional[str] = ..., files: _Optional[_Iterable[_Union[DownloadedFile, _Mapping]]] = ...) -> None: ...

class DownloadedFile(_message.Message):
    __slots__ = ("file", "size_bytes", "sha256")
    FILE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    file: str
    size_bytes: int
    sha256: str
    def __init__(self, file: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...
