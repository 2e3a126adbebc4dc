"""Every bound of the network that a deployment may want to move, in one frozen value.

The rule: nothing that a remote party can make grow is without a bound here or in the machine that
holds it; reaching one is counted and has a stated policy. Memory that strangers can make a process
hold is the sum `half_open_max · 130 KiB + connections_max · (two buffers of 645 KiB) +
process_buffer_bytes_max · 9/8 + gossip and DHT caches`; with the defaults about 1 GiB, if every
connection is in the middle of a large transfer both ways, and a loaded node rarely uses a tenth.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """All bounds; the comment after each is its reason. `ValueError` when one is not positive."""

    # Connections and handshakes
    connections_max: int = 512  # 3/4 for strangers, of whom idle ones make room; full: refused
    connections_per_ip_max: int = 64  # a household or a data-centre gateway, not a sybil farm
    half_open_max: int = 256  # full: the oldest half-open socket is dropped, not the newest
    half_open_per_ip_max: int = 64  # one address cannot fill the table; its own oldest is dropped
    handshake_timeout_s: float = 5.0  # three flights over a bad 600 ms link, twice
    dial_timeout_s: float = 10.0  # one SYN retry and a handshake
    dials_concurrent_max: int = 32  # a lookup must not open a thousand sockets at once
    limit_private_addresses: bool = False  # whether per-IP bounds count loopback and private IPs

    # Liveness
    keepalive_interval_s: float = 5.0  # ping when idle that long
    keepalive_timeout_s: float = 10.0  # 5 + 10 s: a dead peer is noticed within 20 s

    # Streams
    streams_per_connection_max: int = 1024  # opened by the other side and still alive
    streams_total_max: int = 16_384  # over all connections; a stream costs ≈ 2 KiB when idle
    negotiation_timeout_s: float = 10.0  # to name a protocol on a new stream
    negotiation_proposals_max: int = 16  # protocol ids one stream may try
    negotiations_per_connection_max: int = 256  # streams that have not named a protocol yet
    protocol_id_bytes_max: int = 512  # multistream-select lines are short

    # Yamux windows (bytes that a peer may send ahead of the reader)
    window_bytes_max: int = 16 * MIB  # auto-tuned up to here: 1 Gbit/s at 128 ms
    connection_buffer_bytes_max: int = 64 * MIB  # the same for one connection
    process_buffer_bytes_max: int = 256 * MIB  # windows beyond the initial ones; bytes unread

    # Peers
    peers_low: int = 8  # fewer: dial more, from bootstrap, address book and DHT
    peers_high: int = 96  # more: the least useful strangers are disconnected
    redial_backoff_min_s: float = 0.5  # first retry; doubles with jitter
    redial_backoff_max_s: float = 60.0  # for strangers
    redial_wanted_max_s: float = 3.0  # for bootstrap and lost mesh peers: rejoined within 10 s
    ban_s: float = 600.0  # bans expire
    bans_max: int = 4096  # full: the ban that ends first is forgotten
    address_book_peers_max: int = 4096  # full: the peer unseen for longest is forgotten
    addresses_per_peer_max: int = 16  # full: claims are left out, proofs replace the oldest
    identify_bytes_max: int = 8 * KIB  # one identify message
    protocols_per_peer_max: int = 128  # remembered from identify

    # Gossip
    payload_bytes_max: int = 1 * MIB  # default of a topic; larger bodies travel by stream
    gossip_rpc_bytes_max: int = 4 * MIB  # one RPC: a message, its envelope and control
    topics_max: int = 128  # subscribed here
    topics_per_peer_max: int = 256  # announced by one peer
    validations_concurrent_max: int = 64  # async judges per topic; 1,024 messages more may wait
    outbound_rpcs_max: int = 1024  # messages queued to one peer; more are announced to it later

    # Distributed hash table
    records_max: int = 16_384  # full: the record furthest from our key is dropped
    record_bytes_max: int = 16 * KIB  # signed pointers, not bodies
    providers_per_key_max: int = 128  # enough to find peers; full: newcomers are refused
    provided_keys_per_peer_max: int = 256  # one stranger cannot fill the provider table
    provider_keys_max: int = 16_384  # full: the key furthest from ours is dropped
    table_peers_per_subnet_max: int = 16  # per /24 in the whole routing table (sybils)
    lookup_timeout_s: float = 20.0  # one iterative lookup
    lookup_request_timeout_s: float = 3.0  # one peer inside it

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not isinstance(value, bool) and not value > 0:
                raise ValueError(f"{entry.name} must be positive, not {value!r}")
        if self.peers_low > self.peers_high or self.peers_high > self.connections_max:
            raise ValueError("peers_low <= peers_high <= connections_max does not hold")


__all__ = ["Limits"]
