import datetime

from appliance.api.common.v1 import access_pb2 as _access_pb2
from appliance.api.serving.v1 import endpoint_pb2 as _endpoint_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchRoutingRequest(_message.Message):
    __slots__ = ("form",)
    FORM_FIELD_NUMBER: _ClassVar[int]
    form: int
    def __init__(self, form: _Optional[int] = ...) -> None: ...

class RoutingView(_message.Message):
    __slots__ = ("version", "as_of", "unchanged", "token_key", "credentials", "routes", "base_version", "rights", "gone_credentials", "gone_rights", "gone_routes", "more", "digest")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_KEY_FIELD_NUMBER: _ClassVar[int]
    CREDENTIALS_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    RIGHTS_FIELD_NUMBER: _ClassVar[int]
    GONE_CREDENTIALS_FIELD_NUMBER: _ClassVar[int]
    GONE_RIGHTS_FIELD_NUMBER: _ClassVar[int]
    GONE_ROUTES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    version: int
    as_of: _timestamp_pb2.Timestamp
    unchanged: bool
    token_key: bytes
    credentials: _containers.RepeatedCompositeFieldContainer[Credential]
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    base_version: int
    rights: _containers.RepeatedCompositeFieldContainer[Right]
    gone_credentials: _containers.RepeatedScalarFieldContainer[str]
    gone_rights: _containers.RepeatedCompositeFieldContainer[Right]
    gone_routes: _containers.RepeatedScalarFieldContainer[str]
    more: bool
    digest: bytes
    def __init__(self, version: _Optional[int] = ..., as_of: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., unchanged: _Optional[bool] = ..., token_key: _Optional[bytes] = ..., credentials: _Optional[_Iterable[_Union[Credential, _Mapping]]] = ..., routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ..., base_version: _Optional[int] = ..., rights: _Optional[_Iterable[_Union[Right, _Mapping]]] = ..., gone_credentials: _Optional[_Iterable[str]] = ..., gone_rights: _Optional[_Iterable[_Union[Right, _Mapping]]] = ..., gone_routes: _Optional[_Iterable[str]] = ..., more: _Optional[bool] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Credential(_message.Message):
    __slots__ = ("id", "digest", "principal", "expire_time")
    ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    id: str
    digest: bytes
    principal: str
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., digest: _Optional[bytes] = ..., principal: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Right(_message.Message):
    __slots__ = ("principal", "project", "permissions")
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    principal: str
    project: str
    permissions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, principal: _Optional[str] = ..., project: _Optional[str] = ..., permissions: _Optional[_Iterable[str]] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("endpoint", "model", "max_sequence_length", "replicas", "project", "state", "model_uid")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_UID_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    model: str
    max_sequence_length: int
    replicas: _containers.RepeatedCompositeFieldContainer[_endpoint_pb2.Replica]
    project: str
    state: _endpoint_pb2.Endpoint.State
    model_uid: str
    def __init__(self, endpoint: _Optional[str] = ..., model: _Optional[str] = ..., max_sequence_length: _Optional[int] = ..., replicas: _Optional[_Iterable[_Union[_endpoint_pb2.Replica, _Mapping]]] = ..., project: _Optional[str] = ..., state: _Optional[_Union[_endpoint_pb2.Endpoint.State, str]] = ..., model_uid: _Optional[str] = ...) -> None: ...

class ReadServedTokenizerRequest(_message.Message):
    __slots__ = ("endpoint", "held", "model_uid")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    MODEL_UID_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    held: _containers.RepeatedScalarFieldContainer[str]
    model_uid: str
    def __init__(self, endpoint: _Optional[str] = ..., held: _Optional[_Iterable[str]] = ..., model_uid: _Optional[str] = ...) -> None: ...

class ServedTokenizerPart(_message.Message):
    __slots__ = ("tokenizer", "content", "tokenizer_json_size", "chat_template_size", "data", "digest")
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_JSON_SIZE_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_SIZE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    tokenizer: ServedTokenizer
    content: str
    tokenizer_json_size: int
    chat_template_size: int
    data: bytes
    digest: bytes
    def __init__(self, tokenizer: _Optional[_Union[ServedTokenizer, _Mapping]] = ..., content: _Optional[str] = ..., tokenizer_json_size: _Optional[int] = ..., chat_template_size: _Optional[int] = ..., data: _Optional[bytes] = ..., digest: _Optional[bytes] = ...) -> None: ...

class GetServedTokenizerRequest(_message.Message):
    __slots__ = ("endpoint",)
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    def __init__(self, endpoint: _Optional[str] = ...) -> None: ...

class ServedTokenizer(_message.Message):
    __slots__ = ("tokenizer_json", "chat_template", "end_token_ids", "bos_token", "eos_token")
    TOKENIZER_JSON_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    END_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    BOS_TOKEN_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tokenizer_json: bytes
    chat_template: str
    end_token_ids: _containers.RepeatedScalarFieldContainer[int]
    bos_token: str
    eos_token: str
    def __init__(self, tokenizer_json: _Optional[bytes] = ..., chat_template: _Optional[str] = ..., end_token_ids: _Optional[_Iterable[int]] = ..., bos_token: _Optional[str] = ..., eos_token: _Optional[str] = ...) -> None: ...

class ReportUsageRequest(_message.Message):
    __slots__ = ("usages", "refusals", "boot", "entries", "in_use", "last")
    USAGES_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    IN_USE_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    usages: _containers.RepeatedCompositeFieldContainer[Usage]
    refusals: _containers.RepeatedCompositeFieldContainer[Refusals]
    boot: str
    entries: _containers.RepeatedCompositeFieldContainer[UsageEntry]
    in_use: _containers.RepeatedScalarFieldContainer[str]
    last: int
    def __init__(self, usages: _Optional[_Iterable[_Union[Usage, _Mapping]]] = ..., refusals: _Optional[_Iterable[_Union[Refusals, _Mapping]]] = ..., boot: _Optional[str] = ..., entries: _Optional[_Iterable[_Union[UsageEntry, _Mapping]]] = ..., in_use: _Optional[_Iterable[str]] = ..., last: _Optional[int] = ...) -> None: ...

class UsageEntry(_message.Message):
    __slots__ = ("number", "usage", "refusals")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    number: int
    usage: Usage
    refusals: Refusals
    def __init__(self, number: _Optional[int] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., refusals: _Optional[_Union[Refusals, _Mapping]] = ...) -> None: ...

class Refusals(_message.Message):
    __slots__ = ("source", "principal", "count", "reasons", "methods")
    class ReasonsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class MethodsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    source: str
    principal: str
    count: int
    reasons: _containers.ScalarMap[str, int]
    methods: _containers.ScalarMap[str, int]
    def __init__(self, source: _Optional[str] = ..., principal: _Optional[str] = ..., count: _Optional[int] = ..., reasons: _Optional[_Mapping[str, int]] = ..., methods: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("request_id", "principal", "endpoint", "reason", "prompt_tokens", "completion_tokens", "continuations", "first_token_seconds", "seconds", "start_time", "source", "credential")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTINUATIONS_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CREDENTIAL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    principal: str
    endpoint: str
    reason: str
    prompt_tokens: int
    completion_tokens: int
    continuations: int
    first_token_seconds: float
    seconds: float
    start_time: _timestamp_pb2.Timestamp
    source: str
    credential: str
    def __init__(self, request_id: _Optional[str] = ..., principal: _Optional[str] = ..., endpoint: _Optional[str] = ..., reason: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., continuations: _Optional[int] = ..., first_token_seconds: _Optional[float] = ..., seconds: _Optional[float] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., source: _Optional[str] = ..., credential: _Optional[str] = ...) -> None: ...

class ReportUsageResponse(_message.Message):
    __slots__ = ("recorded",)
    RECORDED_FIELD_NUMBER: _ClassVar[int]
    recorded: bool
    def __init__(self, recorded: _Optional[bool] = ...) -> None: ...

class RenewCertificateRequest(_message.Message):
    __slots__ = ("certificate_request",)
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    certificate_request: str
    def __init__(self, certificate_request: _Optional[str] = ...) -> None: ...

class RenewCertificateResponse(_message.Message):
    __slots__ = ("certificate",)
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    def __init__(self, certificate: _Optional[str] = ...) -> None: ...

class RenewFrontCertificateRequest(_message.Message):
    __slots__ = ("certificate_request",)
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    certificate_request: str
    def __init__(self, certificate_request: _Optional[str] = ...) -> None: ...

class RenewFrontCertificateResponse(_message.Message):
    __slots__ = ("certificate",)
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    def __init__(self, certificate: _Optional[str] = ...) -> None: ...
