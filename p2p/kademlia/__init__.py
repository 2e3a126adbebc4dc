"""A distributed hash table, wire-compatible with libp2p's Kademlia (libp2p specs, kad-dht)."""

from p2p.kademlia.contact import Contact, Key, key_of
from p2p.kademlia.dht import PROTOCOL, Kademlia, open_kademlia
from p2p.kademlia.lookup import Lookup
from p2p.kademlia.message import Kind, Message, MessageReader, Record, decode_message
from p2p.kademlia.records import RecordValidator
from p2p.kademlia.table import RoutingTable

__all__ = [
    "PROTOCOL",
    "Contact",
    "Kademlia",
    "Key",
    "Kind",
    "Lookup",
    "Message",
    "MessageReader",
    "Record",
    "RecordValidator",
    "RoutingTable",
    "decode_message",
    "key_of",
    "open_kademlia",
]
