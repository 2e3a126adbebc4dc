from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Request(_message.Message):
    __slots__ = ("type", "connect", "stream_open", "stream_handler", "dht", "pubsub")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        IDENTIFY: _ClassVar[Request.Type]
        CONNECT: _ClassVar[Request.Type]
        STREAM_OPEN: _ClassVar[Request.Type]
        STREAM_HANDLER: _ClassVar[Request.Type]
        DHT: _ClassVar[Request.Type]
        LIST_PEERS: _ClassVar[Request.Type]
        PUBSUB: _ClassVar[Request.Type]
    IDENTIFY: Request.Type
    CONNECT: Request.Type
    STREAM_OPEN: Request.Type
    STREAM_HANDLER: Request.Type
    DHT: Request.Type
    LIST_PEERS: Request.Type
    PUBSUB: Request.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    CONNECT_FIELD_NUMBER: _ClassVar[int]
    STREAM_OPEN_FIELD_NUMBER: _ClassVar[int]
    STREAM_HANDLER_FIELD_NUMBER: _ClassVar[int]
    DHT_FIELD_NUMBER: _ClassVar[int]
    PUBSUB_FIELD_NUMBER: _ClassVar[int]
    type: Request.Type
    connect: Connect
    stream_open: StreamOpen
    stream_handler: StreamHandler
    dht: Dht
    pubsub: PubSub
    def __init__(self, type: _Optional[_Union[Request.Type, str]] = ..., connect: _Optional[_Union[Connect, _Mapping]] = ..., stream_open: _Optional[_Union[StreamOpen, _Mapping]] = ..., stream_handler: _Optional[_Union[StreamHandler, _Mapping]] = ..., dht: _Optional[_Union[Dht, _Mapping]] = ..., pubsub: _Optional[_Union[PubSub, _Mapping]] = ...) -> None: ...

class Connect(_message.Message):
    __slots__ = ("peer", "addrs")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ADDRS_FIELD_NUMBER: _ClassVar[int]
    peer: bytes
    addrs: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, peer: _Optional[bytes] = ..., addrs: _Optional[_Iterable[bytes]] = ...) -> None: ...

class StreamOpen(_message.Message):
    __slots__ = ("peer", "proto")
    PEER_FIELD_NUMBER: _ClassVar[int]
    PROTO_FIELD_NUMBER: _ClassVar[int]
    peer: bytes
    proto: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, peer: _Optional[bytes] = ..., proto: _Optional[_Iterable[str]] = ...) -> None: ...

class StreamHandler(_message.Message):
    __slots__ = ("addr", "proto", "balanced")
    ADDR_FIELD_NUMBER: _ClassVar[int]
    PROTO_FIELD_NUMBER: _ClassVar[int]
    BALANCED_FIELD_NUMBER: _ClassVar[int]
    addr: bytes
    proto: _containers.RepeatedScalarFieldContainer[str]
    balanced: bool
    def __init__(self, addr: _Optional[bytes] = ..., proto: _Optional[_Iterable[str]] = ..., balanced: bool = ...) -> None: ...

class Dht(_message.Message):
    __slots__ = ("type", "peer", "cid", "key", "value", "count")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        FIND_PEER: _ClassVar[Dht.Type]
        FIND_PROVIDERS: _ClassVar[Dht.Type]
        GET_VALUE: _ClassVar[Dht.Type]
        PUT_VALUE: _ClassVar[Dht.Type]
        PROVIDE: _ClassVar[Dht.Type]
    FIND_PEER: Dht.Type
    FIND_PROVIDERS: Dht.Type
    GET_VALUE: Dht.Type
    PUT_VALUE: Dht.Type
    PROVIDE: Dht.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    CID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    type: Dht.Type
    peer: bytes
    cid: bytes
    key: bytes
    value: bytes
    count: int
    def __init__(self, type: _Optional[_Union[Dht.Type, str]] = ..., peer: _Optional[bytes] = ..., cid: _Optional[bytes] = ..., key: _Optional[bytes] = ..., value: _Optional[bytes] = ..., count: _Optional[int] = ...) -> None: ...

class PubSub(_message.Message):
    __slots__ = ("type", "topic", "data")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        GET_TOPICS: _ClassVar[PubSub.Type]
        LIST_PEERS: _ClassVar[PubSub.Type]
        PUBLISH: _ClassVar[PubSub.Type]
        SUBSCRIBE: _ClassVar[PubSub.Type]
    GET_TOPICS: PubSub.Type
    LIST_PEERS: PubSub.Type
    PUBLISH: PubSub.Type
    SUBSCRIBE: PubSub.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    type: PubSub.Type
    topic: str
    data: bytes
    def __init__(self, type: _Optional[_Union[PubSub.Type, str]] = ..., topic: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class Response(_message.Message):
    __slots__ = ("type", "error", "stream_info", "identify", "dht", "peers", "pubsub")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OK: _ClassVar[Response.Type]
        ERROR: _ClassVar[Response.Type]
    OK: Response.Type
    ERROR: Response.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STREAM_INFO_FIELD_NUMBER: _ClassVar[int]
    IDENTIFY_FIELD_NUMBER: _ClassVar[int]
    DHT_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    PUBSUB_FIELD_NUMBER: _ClassVar[int]
    type: Response.Type
    error: Failure
    stream_info: StreamInfo
    identify: PeerInfo
    dht: DhtAnswer
    peers: _containers.RepeatedCompositeFieldContainer[PeerInfo]
    pubsub: PubSubAnswer
    def __init__(self, type: _Optional[_Union[Response.Type, str]] = ..., error: _Optional[_Union[Failure, _Mapping]] = ..., stream_info: _Optional[_Union[StreamInfo, _Mapping]] = ..., identify: _Optional[_Union[PeerInfo, _Mapping]] = ..., dht: _Optional[_Union[DhtAnswer, _Mapping]] = ..., peers: _Optional[_Iterable[_Union[PeerInfo, _Mapping]]] = ..., pubsub: _Optional[_Union[PubSubAnswer, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("msg",)
    MSG_FIELD_NUMBER: _ClassVar[int]
    msg: str
    def __init__(self, msg: _Optional[str] = ...) -> None: ...

class StreamInfo(_message.Message):
    __slots__ = ("peer", "addr", "proto")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ADDR_FIELD_NUMBER: _ClassVar[int]
    PROTO_FIELD_NUMBER: _ClassVar[int]
    peer: bytes
    addr: bytes
    proto: str
    def __init__(self, peer: _Optional[bytes] = ..., addr: _Optional[bytes] = ..., proto: _Optional[str] = ...) -> None: ...

class PeerInfo(_message.Message):
    __slots__ = ("id", "addrs")
    ID_FIELD_NUMBER: _ClassVar[int]
    ADDRS_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    addrs: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, id: _Optional[bytes] = ..., addrs: _Optional[_Iterable[bytes]] = ...) -> None: ...

class DhtAnswer(_message.Message):
    __slots__ = ("type", "peer", "value")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        BEGIN: _ClassVar[DhtAnswer.Type]
        VALUE: _ClassVar[DhtAnswer.Type]
        END: _ClassVar[DhtAnswer.Type]
    BEGIN: DhtAnswer.Type
    VALUE: DhtAnswer.Type
    END: DhtAnswer.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    type: DhtAnswer.Type
    peer: PeerInfo
    value: bytes
    def __init__(self, type: _Optional[_Union[DhtAnswer.Type, str]] = ..., peer: _Optional[_Union[PeerInfo, _Mapping]] = ..., value: _Optional[bytes] = ...) -> None: ...

class PubSubMessage(_message.Message):
    __slots__ = ("source", "data")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    source: bytes
    data: bytes
    def __init__(self, source: _Optional[bytes] = ..., data: _Optional[bytes] = ...) -> None: ...

class PubSubAnswer(_message.Message):
    __slots__ = ("topics", "peer_ids")
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    PEER_IDS_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.RepeatedScalarFieldContainer[str]
    peer_ids: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, topics: _Optional[_Iterable[str]] = ..., peer_ids: _Optional[_Iterable[bytes]] = ...) -> None: ...
