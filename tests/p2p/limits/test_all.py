"""Every field of `Limits` has a test that reaches it, and a counter that tells of it.

The table is checked, not believed: the test must name its limit and its counter.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable

import pytest

import p2p
from tests.p2p import test_switch as parts
from tests.p2p.gossipsub import test_shell as gossip_shell
from tests.p2p.limits import test_gossip as gossip
from tests.p2p.limits import test_kademlia as kademlia
from tests.p2p.limits import test_peers as peers
from tests.p2p.limits import test_sockets as sockets
from tests.p2p.limits import test_switch as switch

OURS = "ours alone: nobody else can reach it, and whoever does here is told or waits"
WAITS = "the sender waits; who does not wait loses its connection, which is counted and tested"
CUT = "what is over it is left out of one message"
RESET = "the stream is reset, as the sender sees; the connection's own counters do not tell why"

REACHED: dict[str, tuple[Callable[..., object], str]] = {
    "connections_max": (sockets.test_connections_max, "connections_refused"),
    "connections_per_ip_max": (sockets.test_connections_per_ip_max, "connections_refused"),
    "half_open_max": (sockets.test_half_open_max, "handshakes_dropped"),
    "half_open_per_ip_max": (sockets.test_half_open_per_ip_max, "handshakes_dropped"),
    "handshake_timeout_s": (sockets.test_handshake_timeout_s, "handshakes_dropped"),
    "dial_timeout_s": (switch.test_dial_timeout_s, OURS),
    "dials_concurrent_max": (switch.test_dials_concurrent_max, OURS),
    "limit_private_addresses": (sockets.test_limit_private_addresses, "connections_refused"),
    "keepalive_interval_s": (
        sockets.test_keepalive_interval_s_and_keepalive_timeout_s,
        "connections_closed_for_silence",
    ),
    "keepalive_timeout_s": (
        sockets.test_keepalive_interval_s_and_keepalive_timeout_s,
        "connections_closed_for_silence",
    ),
    "streams_per_connection_max": (
        parts.test_streams_per_connection_are_bounded,
        "streams_refused",
    ),
    "streams_total_max": (switch.test_streams_total_max, "streams_refused"),
    "negotiation_timeout_s": (parts.test_a_silent_stream_is_given_up, "streams_violating"),
    "negotiation_proposals_max": (switch.test_negotiation_proposals_max, "streams_violating"),
    "negotiations_per_connection_max": (
        switch.test_negotiations_per_connection_max,
        "streams_refused",
    ),
    "protocol_id_bytes_max": (switch.test_protocol_id_bytes_max, OURS),
    "window_bytes_max": (sockets.test_window_bytes_max, WAITS),
    "connection_buffer_bytes_max": (sockets.test_connection_buffer_bytes_max, RESET),
    "process_buffer_bytes_max": (
        sockets.test_process_buffer_bytes_max,
        "connections_closed_for_memory",
    ),
    "peers_low": (peers.test_peers_low, "dials"),
    "peers_high": (peers.test_peers_high, "peers_released"),
    "redial_backoff_min_s": (peers.test_redial_backoff_min_s, OURS),
    "redial_backoff_max_s": (peers.test_redial_backoff_max_s, OURS),
    "redial_wanted_max_s": (peers.test_redial_wanted_max_s, OURS),
    "ban_s": (parts.test_bans_are_bounded_and_expire, "bans"),
    "bans_max": (parts.test_bans_are_bounded_and_expire, "bans"),
    "address_book_peers_max": (peers.test_address_book_peers_max, "address_book_peers_forgotten"),
    "addresses_per_peer_max": (peers.test_addresses_per_peer_max, "addresses_left_out"),
    "identify_bytes_max": (switch.test_identify_bytes_max, "streams_violating"),
    "protocols_per_peer_max": (switch.test_protocols_per_peer_max, CUT),
    "payload_bytes_max": (gossip.test_payload_bytes_max, "gossip_messages_oversize"),
    "gossip_rpc_bytes_max": (gossip.test_gossip_rpc_bytes_max, "gossip_violations"),
    "topics_max": (gossip.test_topics_max, OURS),
    "topics_per_peer_max": (gossip.test_topics_per_peer_max, "gossip_subscriptions_over_limit"),
    "validations_concurrent_max": (
        gossip.test_validations_concurrent_max,
        "gossip_judge_queue_full",
    ),
    "outbound_rpcs_max": (
        gossip_shell.test_publish_waits_for_a_slow_peer_once_and_loses_nothing,
        "gossip_messages_queue_full",
    ),
    "records_max": (kademlia.test_records_max, "kademlia_records_displaced"),
    "record_bytes_max": (kademlia.test_record_bytes_max, "kademlia_requests_refused"),
    "providers_per_key_max": (
        kademlia.test_providers_per_key_max,
        "kademlia_announcements_refused",
    ),
    "provided_keys_per_peer_max": (
        kademlia.test_provided_keys_per_peer_max,
        "kademlia_announcements_refused",
    ),
    "provider_keys_max": (kademlia.test_provider_keys_max, "kademlia_announcements_displaced"),
    "table_peers_per_subnet_max": (
        kademlia.test_table_peers_per_subnet_max,
        "kademlia_subnet_full",
    ),
    "lookup_timeout_s": (kademlia.test_lookup_timeout_s, "kademlia_lookups_late"),
    "lookup_request_timeout_s": (
        kademlia.test_lookup_request_timeout_s,
        "kademlia_requests_late",
    ),
}


def test_every_limit_is_in_the_table() -> None:
    assert REACHED.keys() == {field.name for field in dataclasses.fields(p2p.Limits)}


@pytest.mark.parametrize("limit", REACHED)
def test_the_test_names_its_limit_and_its_counter(limit: str) -> None:
    test, counter = REACHED[limit]
    source = inspect.getsource(inspect.unwrap(test))
    assert limit in source
    assert counter in (OURS, WAITS, CUT, RESET) or f'"{counter}"' in source
