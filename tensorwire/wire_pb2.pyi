from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    FORWARD: _ClassVar[Kind]
    BACKWARD: _ClassVar[Kind]
    RESULT: _ClassVar[Kind]
    GRADIENT: _ClassVar[Kind]
    FAILURE: _ClassVar[Kind]

class Modality(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODALITY_UNSPECIFIED: _ClassVar[Modality]
    TEXT: _ClassVar[Modality]
    IMAGE: _ClassVar[Modality]
    SPEECH: _ClassVar[Modality]
    TENSOR: _ClassVar[Modality]

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    FLOAT32: _ClassVar[DType]
    FLOAT16: _ClassVar[DType]
    BFLOAT16: _ClassVar[DType]
    INT64: _ClassVar[DType]
    INT8_BLOCK: _ClassVar[DType]

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RAW: _ClassVar[Codec]

class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODE_UNSPECIFIED: _ClassVar[Code]
    MALFORMED: _ClassVar[Code]
    VERSION: _ClassVar[Code]
    BAD_SHAPE: _ClassVar[Code]
    BAD_DTYPE: _ClassVar[Code]
    BAD_VALUE: _ClassVar[Code]
    TOO_LARGE: _ClassVar[Code]
    UNKNOWN_MODALITY: _ClassVar[Code]
    BUSY: _ClassVar[Code]
    DEADLINE: _ClassVar[Code]
    BACKWARD_REFUSED: _ClassVar[Code]
    INTERNAL: _ClassVar[Code]
KIND_UNSPECIFIED: Kind
FORWARD: Kind
BACKWARD: Kind
RESULT: Kind
GRADIENT: Kind
FAILURE: Kind
MODALITY_UNSPECIFIED: Modality
TEXT: Modality
IMAGE: Modality
SPEECH: Modality
TENSOR: Modality
DTYPE_UNSPECIFIED: DType
FLOAT32: DType
FLOAT16: DType
BFLOAT16: DType
INT64: DType
INT8_BLOCK: DType
RAW: Codec
CODE_UNSPECIFIED: Code
MALFORMED: Code
VERSION: Code
BAD_SHAPE: Code
BAD_DTYPE: Code
BAD_VALUE: Code
TOO_LARGE: Code
UNKNOWN_MODALITY: Code
BUSY: Code
DEADLINE: Code
BACKWARD_REFUSED: Code
INTERNAL: Code

class Part(_message.Message):
    __slots__ = ("modality", "dtype", "shape", "codec", "payload_bytes")
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    modality: Modality
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    codec: Codec
    payload_bytes: int
    def __init__(self, modality: _Optional[_Union[Modality, str]] = ..., dtype: _Optional[_Union[DType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., codec: _Optional[_Union[Codec, str]] = ..., payload_bytes: _Optional[int] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("server", "client", "request_digest", "result_digest", "service_number", "queue_wait_us", "share_ppm", "weights_height", "signature")
    SERVER_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RESULT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SERVICE_NUMBER_FIELD_NUMBER: _ClassVar[int]
    QUEUE_WAIT_US_FIELD_NUMBER: _ClassVar[int]
    SHARE_PPM_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    server: bytes
    client: bytes
    request_digest: bytes
    result_digest: bytes
    service_number: int
    queue_wait_us: int
    share_ppm: int
    weights_height: int
    signature: bytes
    def __init__(self, server: _Optional[bytes] = ..., client: _Optional[bytes] = ..., request_digest: _Optional[bytes] = ..., result_digest: _Optional[bytes] = ..., service_number: _Optional[int] = ..., queue_wait_us: _Optional[int] = ..., share_ppm: _Optional[int] = ..., weights_height: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "detail", "retry_after_ms", "position")
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    code: Code
    detail: str
    retry_after_ms: int
    position: int
    def __init__(self, code: _Optional[_Union[Code, str]] = ..., detail: _Optional[str] = ..., retry_after_ms: _Optional[int] = ..., position: _Optional[int] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("kind", "request_id", "remaining_ms", "parts", "payload_digest", "reply_dtype", "receipt_wanted", "receipt", "failure")
    KIND_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REMAINING_MS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REPLY_DTYPE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_WANTED_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    kind: Kind
    request_id: bytes
    remaining_ms: int
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    payload_digest: bytes
    reply_dtype: DType
    receipt_wanted: bool
    receipt: Receipt
    failure: Failure
    def __init__(self, kind: _Optional[_Union[Kind, str]] = ..., request_id: _Optional[bytes] = ..., remaining_ms: _Optional[int] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., payload_digest: _Optional[bytes] = ..., reply_dtype: _Optional[_Union[DType, str]] = ..., receipt_wanted: bool = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...
