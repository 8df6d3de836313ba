from appliance.api.common.v1 import access_pb2 as _access_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class JoinRequest(_message.Message):
    __slots__ = ("token", "certificate_request")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    token: str
    certificate_request: str
    def __init__(self, token: _Optional[str] = ..., certificate_request: _Optional[str] = ...) -> None: ...

class GetChallengeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetChallengeResponse(_message.Message):
    __slots__ = ("challenge",)
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    challenge: bytes
    def __init__(self, challenge: _Optional[bytes] = ...) -> None: ...

class RecoverCertificateRequest(_message.Message):
    __slots__ = ("certificate", "challenge", "certificate_request", "signature")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    challenge: bytes
    certificate_request: str
    signature: bytes
    def __init__(self, certificate: _Optional[str] = ..., challenge: _Optional[bytes] = ..., certificate_request: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class RecoverCertificateResponse(_message.Message):
    __slots__ = ("name", "certificate")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    name: str
    certificate: str
    def __init__(self, name: _Optional[str] = ..., certificate: _Optional[str] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("node", "certificate", "ca_certificate", "cluster_id")
    NODE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CA_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    node: str
    certificate: str
    ca_certificate: str
    cluster_id: str
    def __init__(self, node: _Optional[str] = ..., certificate: _Optional[str] = ..., ca_certificate: _Optional[str] = ..., cluster_id: _Optional[str] = ...) -> None: ...

class JoinGatewayRequest(_message.Message):
    __slots__ = ("token", "certificate_request")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    token: str
    certificate_request: str
    def __init__(self, token: _Optional[str] = ..., certificate_request: _Optional[str] = ...) -> None: ...

class JoinGatewayResponse(_message.Message):
    __slots__ = ("gateway", "certificate", "ca_certificate", "cluster_id")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CA_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    certificate: str
    ca_certificate: str
    cluster_id: str
    def __init__(self, gateway: _Optional[str] = ..., certificate: _Optional[str] = ..., ca_certificate: _Optional[str] = ..., cluster_id: _Optional[str] = ...) -> None: ...
