"""The serving half: what this node answers to a request, as a function of what it knows.

The rule: a request changes nothing but its own sender's announcements and records that their
validators accept; every answer is bounded; a request that is refused raises `ProtocolViolation` or
`InvalidRecord`, upon which its stream is reset (libp2p kad-dht, "RPC messages").

Deviations: FIND_NODE for a known peer names that peer first and then its neighbours, as go-libp2p
does, where the text wants it alone: a search for one's own neighbours could never end otherwise. It
names this node when asked for it: go-libp2p takes in only servers that do.
ADD_PROVIDER counts once, for the sender, whatever the message repeats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from p2p.errors import InvalidRecord, MalformedPeerId, ProtocolViolation
from p2p.identity import PEER_ID_BYTES, PeerId
from p2p.kademlia.contact import Contact, key_of
from p2p.kademlia.message import Kind, Message
from p2p.kademlia.providers import ProviderStore
from p2p.kademlia.records import RecordStore
from p2p.kademlia.table import BUCKET_SIZE, RoutingTable

PROVIDER_KEY_BYTES_MAX = 80
"""A multihash of 64 bytes and its prefix; go-libp2p's bound."""

PROVIDERS_NAMED_MAX = 20
"""In one answer; whoever wants more asks the other holders of the key."""


class Server:
    """Answers requests from a routing table and two stores; no input or output of its own."""

    def __init__(
        self,
        *,
        table: RoutingTable,
        providers: ProviderStore,
        records: RecordStore,
        addresses_of: Callable[[PeerId], tuple[str, ...]] = lambda _peer_id: (),
        closer_count: int = BUCKET_SIZE,
    ) -> None:
        self._table = table
        self._providers = providers
        self._records = records
        self._addresses_of = addresses_of
        self._closer_count = closer_count

    def answer(
        self, sender: PeerId, request: Message, now_s: float, *, observed: str | None = None
    ) -> Message | None:
        """The answer to `request`, or None where the protocol has none (ADD_PROVIDER).

        `now_s` is Unix time; `observed` the address that the sender's connection comes from.

        Raises:
            ProtocolViolation: the request is not one that a peer may make.
            InvalidRecord: PUT_VALUE of a record that its validator refuses.
        """
        match request.kind:
            case Kind.FIND_NODE:
                return Message(
                    kind=request.kind, key=request.key, closer=self._find_node(sender, request)
                )
            case Kind.GET_PROVIDERS:
                self._check_provider_key(request.key)
                known = self._providers.get(request.key, now_s, count=PROVIDERS_NAMED_MAX + 1)
                others = [contact for contact in known if contact.peer_id != sender]
                return Message(
                    kind=request.kind,
                    key=request.key,
                    closer=self._closer(sender, request.key),
                    providers=tuple(others[:PROVIDERS_NAMED_MAX]),
                )
            case Kind.ADD_PROVIDER:
                self._add_provider(sender, request, now_s, observed)
                return None
            case Kind.GET_VALUE:
                if not request.key:
                    raise ProtocolViolation("GET_VALUE without a key")
                return Message(
                    kind=request.kind,
                    key=request.key,
                    record=self._records.get(request.key, now_s),
                    closer=self._closer(sender, request.key),
                )
            case Kind.PUT_VALUE:
                return self._put_value(sender, request, now_s)
            case Kind.PING:
                return Message(kind=Kind.PING)
            case _:
                assert_never(request.kind)

    def _find_node(self, sender: PeerId, request: Message) -> tuple[Contact, ...]:
        if not request.key:
            raise ProtocolViolation("FIND_NODE without a key")
        closer = self._closer(sender, request.key)
        target = self._peer_named(request.key)
        if target is None or target == sender or any(c.peer_id == target for c in closer):
            return closer
        # Nor are we in our table, nor clients in anybody's, but where they are can be known.
        addresses = self._addresses_of(target)
        if not addresses:
            return closer
        return (Contact(peer_id=target, addresses=addresses), *closer[: self._closer_count - 1])

    def _add_provider(
        self, sender: PeerId, request: Message, now_s: float, observed: str | None
    ) -> None:
        self._check_provider_key(request.key)
        for contact in request.providers:
            if contact.peer_id == sender:
                self._providers.add(request.key, contact, now_s, observed=observed)
                return
        raise ProtocolViolation("ADD_PROVIDER that does not name its sender")

    def _put_value(self, sender: PeerId, request: Message, now_s: float) -> Message:
        record = request.record
        if record is None or record.key != request.key:
            raise ProtocolViolation("PUT_VALUE without a record of its key")
        if not self._records.put(record, sender, now_s):
            raise InvalidRecord("a better record is known, or there is no room")
        return Message(kind=request.kind, key=request.key, record=record)

    def _closer(self, sender: PeerId, name: bytes) -> tuple[Contact, ...]:
        return tuple(self._table.closest(key_of(name), self._closer_count, without=sender))

    def _peer_named(self, key: bytes) -> PeerId | None:
        if len(key) != PEER_ID_BYTES:
            return None
        try:
            return PeerId.from_bytes(key)
        except MalformedPeerId:
            return None

    def _check_provider_key(self, key: bytes) -> None:
        if not 0 < len(key) <= PROVIDER_KEY_BYTES_MAX:
            raise ProtocolViolation(f"a provider key of {len(key)} bytes")
