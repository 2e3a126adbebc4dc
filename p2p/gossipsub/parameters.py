"""The numbers of gossipsub: the overlay's degrees and times, and every bound of the machine.

The rule: nothing that a remote peer can make grow is without a bound here. Names and meanings
follow the parameter tables of the gossipsub v1.0, v1.1 and v1.2 specifications.
"""

from __future__ import annotations

from dataclasses import dataclass

MESHSUB_1_0 = "/meshsub/1.0.0"
MESHSUB_1_1 = "/meshsub/1.1.0"
MESHSUB_1_2 = "/meshsub/1.2.0"
PROTOCOLS = (MESHSUB_1_2, MESHSUB_1_1, MESHSUB_1_0)
"""What we speak, preferred first; 1.0 peers take part without scores and IDONTWANT of their own."""

TOPIC_BYTES_MAX = 1024
"""A topic name; longer ones are malformed. A u16 length stands in the content id."""

MESSAGE_ID_BYTES_MAX = 128
"""An id in IHAVE, IWANT or IDONTWANT; ours have 20 bytes, `from || seqno` at most 50 or so."""

RPC_FIELDS_MAX = 16_384
"""Entries (messages, subscriptions, control) of one RPC: 4 MiB of messages of 256 bytes. Without it
4 MiB of empty entries would cost seconds."""

CONTROL_BYTES_MAX = 512 * 1024
"""All control of one RPC: three IHAVE of 5,000 ids fit, and empty entries cost at most 20 ms."""

SUBSCRIPTIONS_PER_RPC_MAX = 1024
"""Subscription changes read from one RPC; the rest is ignored and counted."""

CONTROL_ENTRIES_MAX = 1024
"""GRAFT or PRUNE entries read from one RPC; one per topic is all that makes sense."""

IHAVE_IDS_MAX = 5000
"""Ids taken from one peer per heartbeat, and put into one IHAVE (go-libp2p: the same)."""

IHAVE_MESSAGES_MAX = 10
"""IHAVE messages read from one peer per heartbeat (go-libp2p: the same)."""

IDONTWANT_IDS_MAX = 1000
"""IDONTWANT ids kept per peer and heartbeat (go-libp2p: the same); more are ignored."""

IDONTWANT_HEARTBEATS = 3
"""For how many heartbeats an IDONTWANT is remembered; the message cache gossips no longer."""

RETRANSMISSIONS_MAX = 3
"""How often one message is sent to one peer on IWANT, against a drain of our uplink."""

PROMISES_MAX = 4096
"""IWANT promises followed at a time; beyond, requests are still sent but not followed."""

SEEN_MAX = 131_072
"""Ids remembered: 7.8 s at 16,800 messages/s, the most that one core can judge; longer than the
5 s of the message cache, so that gossip never brings an expired id back as new. About 20 MiB."""

CACHE_MESSAGES_MAX = 32_768
"""Messages kept for IWANT; full: the oldest leaves."""

CACHE_BYTES_MAX = 32 * 1024 * 1024
"""Bytes of those messages, encoded; with their payloads twice that. Full: the oldest leaves."""

PENDING_MAX = 8192
"""Messages being judged at a time over all topics; full: the newest is dropped and counted."""

PENDING_BYTES_MAX = 32 * 1024 * 1024
"""Bytes of those messages, encoded; or else 8,192 of 1 MiB could wait for a slow judge."""

PARTIAL_BYTES_MAX = 32 * 1024 * 1024
"""Bytes of RPCs that have not arrived whole, of all peers; full: the stream whose RPC has been
incomplete for longest is reset. Honest RPCs are whole within a round trip."""

SLICE_MESSAGES = 64
"""Messages of one RPC handled before other tasks may run: about 5 ms with a judge that verifies."""

FANOUT_TOPICS_MAX = 256
"""Topics published to without a subscription; full: the one unused for longest leaves."""

BACKOFFS_PER_TOPIC_MAX = 4096
"""Peers in backoff per topic; full: the backoff that was set first is forgotten."""

BACKOFF_S_MAX = 3600
"""The longest backoff believed from a PRUNE: no peer can bar itself from us for a year."""

OWED_IDS_MAX = 1024
"""Ids per peer whose message did not fit into its queue; announced at the next heartbeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshParameters:
    """Degrees and times of the overlay (specifications v1.0 and v1.1); ValueError when absurd."""

    degree: int = 8  # D
    degree_low: int = 6  # D_lo: fewer: graft up to D
    degree_high: int = 12  # D_hi: more: prune down to D
    degree_lazy: int = 6  # D_lazy: least number of peers that get gossip
    degree_score: int = 5  # D_score: kept for their score when pruning
    degree_out: int = 2  # D_out: kept because we dialled them
    gossip_factor: float = 0.25  # share of the other peers that get gossip
    heartbeat_s: float = 1.0
    history_windows: int = 5  # mcache_len: heartbeats a message can be asked for
    gossip_windows: int = 3  # mcache_gossip: heartbeats it is announced for
    seen_s: float = 120.0
    fanout_s: float = 60.0
    prune_backoff_s: float = 60.0
    unsubscribe_backoff_s: float = 10.0
    graft_flood_s: float = 10.0  # a GRAFT this soon after our PRUNE counts twice
    promise_s: float = 3.0  # an IWANT must be answered within this
    opportunistic_heartbeats: int = 60
    opportunistic_peers: int = 2
    flood_publish: bool = True  # own messages go to every subscriber we are connected to
    idontwant_bytes_min: int = 2048  # below, an IDONTWANT costs more than the copy it saves

    def __post_init__(self) -> None:
        if not 0 <= self.degree_low <= self.degree <= self.degree_high:
            raise ValueError("degree_low <= degree <= degree_high does not hold")
        if self.degree and not (
            self.degree_out < max(self.degree_low, 1) and self.degree_out <= self.degree / 2
        ):
            raise ValueError("degree_out < degree_low and <= degree / 2 does not hold")
        if not 1 <= self.gossip_windows <= self.history_windows:
            raise ValueError("1 <= gossip_windows <= history_windows does not hold")
        if self.heartbeat_s <= 0:
            raise ValueError("heartbeat_s must be positive")
